"""One row of the catalogue: what the indexer found out about one version."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self

from mos.concept import ConceptRef
from registry.manifest import Manifest


class State(StrEnum):
    """Where a version stands; only `LISTED` is found by a search and fused without being asked for.

    UPLOADED: its manifest is there, but the indexer has not (or could not yet) read all of it.
    CHECKED: it passed every check and waits for an administrator's approval.
    LISTED: it passed every check named in its row. That is not a promise that it is harmless.
    QUARANTINED: a check failed; the row says which.
    YANKED: its owner or the administrator hid it; it can come back.
    TAMPERED: its manifest changed after it was first seen; the first bytes stand, these do not.
    DELETED: its bytes were removed for good, for instance because a consent was withdrawn.
    """

    UPLOADED = "uploaded"
    CHECKED = "checked"
    LISTED = "listed"
    QUARANTINED = "quarantined"
    YANKED = "yanked"
    TAMPERED = "tampered"
    DELETED = "deleted"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A version in the catalogue; `docs/registry.md` has the table of its columns.

    `verdict` is what the version by itself deserves, `state` what is left of it after the rules that look at
    its owner's other versions and at other owners' words.
    """

    owner: str
    concept: str
    version: int
    state: str
    reason: str
    verdict: str
    verdict_reason: str
    checks: list[str]
    kind: str
    concept_kind: str
    title: str
    description: str
    tags: list[str]
    words: list[str]
    class_word: str
    rank: int
    base_name: str
    base_family: str
    base_key: str
    licence: str
    credit: list[str]
    commercial_use: bool
    derivatives: bool
    num_persons: int
    size_bytes: int
    weights_sha256: str
    previews: list[str]
    lineage: list[str]
    run_id: str
    created_at: str
    first_seen_at: str
    first_seen_snapshot: int
    manifest_sha256: str
    key_id: str
    num_events: int
    events_sha256: str
    search_text: str

    @property
    def ref(self) -> ConceptRef:
        """The version."""
        return ConceptRef(self.owner, self.concept, self.version)

    def to_dict(self) -> dict[str, Any]:
        """Column name -> value."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From a record of the catalogue, which may have further columns."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def base_key(fingerprint: dict[str, str]) -> str:
    """One short name for a base's weights: component and first 16 digits of its sha256, sorted."""
    return ",".join(f"{component}:{digest[:16]}" for component, digest in sorted(fingerprint.items()))


def describe(manifest: Manifest, *, forget: bool) -> dict[str, Any]:
    """The columns that come from a manifest; with `forget` those that describe a person or picture are empty."""
    ref = manifest.ref
    title, description = ("", "") if forget else (manifest.title, manifest.description)
    tags = [] if forget else list(manifest.tags)
    text = " ".join([str(ref.owner), ref.name, manifest.class_word, title, description, *tags])
    return {
        "owner": ref.owner,
        "concept": ref.name,
        "version": ref.version,
        "kind": manifest.kind,
        "concept_kind": manifest.concept_kind,
        "title": title,
        "description": description,
        "tags": tags,
        "words": list(manifest.words),
        "class_word": manifest.class_word,
        "rank": manifest.rank,
        "base_name": manifest.base_name,
        "base_family": manifest.base_family,
        "base_key": base_key(manifest.base_fingerprint),
        "licence": manifest.licence.name,
        "credit": list(manifest.licence.credit),
        "commercial_use": manifest.licence.commercial_use,
        "derivatives": manifest.licence.derivatives,
        "num_persons": len(manifest.licence.persons),
        "size_bytes": manifest.size_bytes,
        "weights_sha256": manifest.weights.sha256,
        "previews": [] if forget else [file.sha256 for file in manifest.previews],
        "lineage": [str(source.ref) for source in manifest.lineage],
        "run_id": manifest.run_id,
        "created_at": manifest.created_at,
        "search_text": "" if forget else text.lower(),
    }
