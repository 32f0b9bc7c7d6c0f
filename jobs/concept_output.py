"""What `mos concept` and `mos registry` print: rows, one version, an audit, a withdrawal."""

from typing import TYPE_CHECKING, Any

import click

from jobs.options import print_json
from mos.concept import ConceptRef
from mos.errors import CheckFailedError

if TYPE_CHECKING:
    from registry.client import Registry
    from registry.resolving import Resolved
    from registry.row import Row


def print_rows(
    rows: list["Row"], as_json: bool, closeness: list[float] | None = None, *, registry: "Registry | None" = None
) -> None:
    """Print catalogue rows as a table, or as JSON with every column; a registry adds verified evaluations."""
    from jobs.evaluate_signing import one_line, verified_scores

    scores = [{} if registry is None else verified_scores(registry, row.ref, row.weights_sha256) for row in rows]
    if as_json:
        print_json(
            [
                {**row.to_dict(), "ref": str(row.ref), **({} if closeness is None else {"similarity": closeness[i]})}
                | ({"evaluation": scores[i]} if scores[i] else {})
                for i, row in enumerate(rows)
            ]
        )
        return
    if not rows:
        click.echo("mos: nothing found", err=True)
    for index, row in enumerate(rows):
        near = "" if closeness is None else f"{closeness[index]:.3f}  "
        word = ConceptRef(row.owner, row.concept).word if row.kind == "concept" else "fusion"
        line = f"{near}{row.ref!s:<32} {row.state:<12} {word:<24} {row.licence:<12} {row.title}"
        click.echo(f"{line}  {one_line(scores[index])}".rstrip())


def describe(found: "Resolved") -> dict[str, Any]:
    """One version as data."""
    manifest = found.manifest
    return {
        "ref": str(found.ref),
        "state": found.state.value,
        "reason": found.reason,
        "checks": list(found.checks),
        "word": ConceptRef(found.ref.owner, found.ref.name).word if manifest.kind == "concept" else "",
        "kind": manifest.kind,
        "class_word": manifest.class_word,
        "concept_kind": manifest.concept_kind,
        "title": manifest.title,
        "description": manifest.description,
        "tags": list(manifest.tags),
        "base": manifest.base_name,
        "base_fingerprint": manifest.base_fingerprint,
        "rank": manifest.rank,
        "recipe": manifest.recipe,
        "licence": manifest.licence.to_json(),
        "lineage": [source.to_json() for source in manifest.lineage],
        "files": [file.to_json() for file in manifest.files],
        "run_id": manifest.run_id,
        "created_at": manifest.created_at,
        "manifest_sha256": found.manifest_sha256,
    }


def lock_entry(found: "Resolved") -> dict[str, str]:
    """What a lockfile says of a version."""
    return {
        "ref": str(found.ref),
        "manifest_sha256": found.manifest_sha256,
        "weights_sha256": found.weights_sha256,
    }


def report(count: int, complaints: list[Any], as_json: bool) -> None:
    """Print what an audit found.

    Raises:
        CheckFailedError: If anything was wrong.
    """
    if as_json:
        print_json({"num_versions": count, "complaints": [vars(one) for one in complaints]})
    else:
        click.echo(f"{count} versions read, {len(complaints)} complaints")
    for one in complaints:
        place = "" if one.what.startswith(one.where) else f"{one.where}: "
        click.echo(f"mos: {place}{one.what}", err=True)
    if complaints:
        raise CheckFailedError(f"{len(complaints)} of {count} versions are not as they should be")


def report_withdrawn(refs: list[ConceptRef], action: str, as_json: bool, **more: object) -> None:
    """Print to which versions an action was applied; `more` only in JSON."""
    if as_json:
        print_json({"action": action, "refs": [str(ref) for ref in refs], **more})
        return
    for ref in refs:
        click.echo(f"{ref} {action}")


def as_line(value: Any) -> str:
    """A value in one line for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {as_line(item)}" for key, item in value.items() if item not in ("", [], None))
    if isinstance(value, list):
        return ", ".join(as_line(item) for item in value)
    return str(value)
