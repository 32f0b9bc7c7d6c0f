"""Sign what an evaluation found out about published versions: the evaluator's act, never the owner's."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.evaluation_tables import open_evaluation
from mos.concept import ConceptRef
from mos.errors import NotAllowedError, NotFoundError
from mos.evaluation.results import METRICS, PictureScore, compare, summarise, values_of

if TYPE_CHECKING:
    from mos.evaluation.intervals import Interval
    from registry import Registry
    from registry.attestation import Score


def sign_evaluation(
    registry: "Registry", evaluation: str, refs: Sequence[str], base: str | None, *, allow_unlisted: bool = False
) -> list[dict[str, Any]]:
    """Sign the scores of published versions and store them beside their manifests.

    Args:
        registry: Where versions and evaluation are; its indexer's key must be in this home.
        evaluation: Start of the evaluation's digest.
        refs: Published versions, concepts or fused models, that were evaluated.
        base: What they are opened for.
        allow_unlisted: Also sign versions that are not listed.

    Raises:
        NotAllowedError: If the key is not here.
        NotFoundError: If the evaluation has no picture drawn with the weights of a version.
    """
    from registry.attestation import Attestation, write_attestation
    from registry.fields import format_time

    if not registry.may_index:
        raise NotAllowedError(f"{registry.url}: the indexer's key is not in {registry.home.root}; only it may sign")
    found = open_evaluation(registry.url, evaluation)
    rows = [row.score for row in found.rows]
    signed = []
    for text in refs:
        resolved = registry.resolve(text, allow_unlisted=allow_unlisted)
        mine = _rows_of(registry, resolved, rows, base)
        attestation = Attestation(
            ref=resolved.ref,
            weights_sha256=resolved.weights_sha256,
            evaluation=found.digest,
            suite=str(found.settings["suite"]["name"]),
            scores=_scores(mine),
            changes=_changes(mine, rows),
            created_at=format_time(time.time()),
        )
        key = registry.home.registry_key(registry.record.registry_id, "indexer")
        name = write_attestation(registry.shelf.store, attestation, key)
        signed.append({"ref": str(resolved.ref), "pictures": len(mine), "stored": name})
    return signed


def _rows_of(registry: "Registry", resolved: Any, rows: Sequence[PictureScore], base: str | None) -> list[PictureScore]:
    """The rows that were drawn with exactly this version's weights, opened again to make sure."""
    from jobs.opening import open_base
    from mos.evaluation.batch import adapter_digest
    from mos.models import load_adapter

    facts = open_base(base).facts
    digest = adapter_digest(load_adapter(registry.pull(resolved), facts, ref=resolved.ref))
    mine = [row for row in rows if row.model_digest == digest]
    if not mine:
        raise NotFoundError(f"{resolved.ref}: this evaluation has no picture drawn with its weights; submit it first")
    return mine


def _scores(rows: Sequence[PictureScore]) -> "dict[str, Score]":
    """Means with intervals over all of a version's pictures."""
    (cell,) = summarise([replace(row, method="this") for row in rows if row.scores])
    return {name: _score(interval) for name, interval in cell.intervals.items()}


def _changes(mine: Sequence[PictureScore], rows: Sequence[PictureScore]) -> "dict[str, dict[str, Score]]":
    """For each concept of a fused model what it lost or won against the concept alone, picture by picture."""
    method = mine[0].method
    singles = [row for row in rows if row.method == "single"]
    if method == "single" or not singles:
        return {}
    changes: dict[str, dict[str, Score]] = {}
    for concept in dict.fromkeys(row.concept for row in mine if row.concept):
        both = [row for row in (*mine, *singles) if row.concept == concept]
        for metric in METRICS:
            after = values_of((row for row in both if row.method == method), metric.name)
            before = values_of((row for row in both if row.method == "single"), metric.name)
            if after.keys() & before.keys():
                difference = compare(both, method, "single", metric.name)
                changes.setdefault(concept, {})[metric.name] = _score(difference.interval)
    return changes


def _score(interval: "Interval") -> "Score":
    from registry.attestation import Score

    return Score(mean=interval.mean, low=interval.low, high=interval.high, count=interval.count)


def verified_scores(registry: "Registry", ref: ConceptRef, weights_sha256: str) -> dict[str, Any]:
    """The newest verified evaluation of a version as data; what does not verify is named, not shown."""
    from registry.attestation import read_attestations

    found, refused = read_attestations(registry.shelf.store, ref, weights_sha256, registry.record.indexer)
    data: dict[str, Any] = {}
    if found:
        newest = found[0]
        data = {
            "suite": newest.suite,
            "evaluation": newest.evaluation,
            "created_at": newest.created_at,
            "scores": {name: vars(score) for name, score in newest.scores.items()},
            "changes": {c: {name: vars(score) for name, score in s.items()} for c, s in newest.changes.items()},
        }
    if refused:
        data["not_believed"] = refused
    return data


def one_line(data: dict[str, Any]) -> str:
    """The verified scores in one line for a listing: identity first, then likeness and text."""
    shown = []
    for name, label in (
        ("probe_identity", "identity"),
        ("image_alignment_pairwise", "likeness"),
        ("text_alignment", "text"),
    ):
        score = data.get("scores", {}).get(name)
        if score is not None:
            shown.append(f"{label} {score['mean']:.2f}")
    return f"verified: {', '.join(shown)}" if shown else ""
