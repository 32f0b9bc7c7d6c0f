"""What one version deserves by itself: its manifest, signature, events and files, examined for the catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from mos.concept import ConceptRef
from mos.errors import BadInputError, MosError, TryAgainError
from registry.documents import sha256_hex
from registry.errors import IntegrityError, ObjectMissingError
from registry.event import SignedEvent, Standing
from registry.manifest import Manifest, SignedManifest
from registry.reading import Shelf, readable_manifest
from registry.records import Limits, OwnerRecord
from registry.row import Row, State, describe
from registry.screening import check_licence, check_limits, check_words
from registry.trust import Memory, accepted_events, check_manifest_signature


class ArtifactCheck(Protocol):
    """Judges the weights of a version; the only part of the registry that looks into them."""

    def __call__(self, manifest: Manifest, files: Mapping[str, bytes], limits: Limits) -> Sequence[str]:
        """Check the weights (and the report of a fusion) against the manifest.

        Returns:
            Names of the checks passed.

        Raises:
            MosError: If one fails; its message becomes the reason for quarantine.
        """
        ...


_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_OWN_CHECKS = ("signature", "words", "licence", "limits")


@dataclass(frozen=True)
class Verdict:
    """A state, why, and the names of the checks passed."""

    state: State
    reason: str = ""
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What an examination found: the row as judged by itself, and what was odd on the way."""

    row: Row
    problems: tuple[str, ...] = ()


def examine(
    shelf: Shelf,
    ref: ConceptRef,
    owner: OwnerRecord | MosError,
    known: Row | None,
    *,
    now: str,
    snapshot: int,
    check_artifact: ArtifactCheck,
    reread_files: bool,
) -> Finding:
    """Examine one version.

    Args:
        shelf: The registry.
        ref: The version.
        owner: The owner's record, or why there is none.
        known: Its row in the catalogue so far.
        now: The time of this indexing, which is the first sight of an unknown version.
        snapshot: The number of the snapshot being written.
        check_artifact: Looks into the weights.
        reread_files: Read the files even if the catalogue says they passed before.

    Raises:
        ObjectMissingError: If the version is unknown and has no manifest.
    """
    memory = _memory(known, now, snapshot)
    try:
        signed, unreadable, sha256 = readable_manifest(shelf, ref, known.manifest_sha256 if known is not None else "")
    except ObjectMissingError:
        if known is None:
            raise
        return Finding(_tampered(known, "its manifest is gone"))
    if known is not None and sha256 != known.manifest_sha256:
        return Finding(_tampered(known, f"its manifest changed: first seen {known.manifest_sha256[:12]}…"))
    if signed is None:
        return Finding(_unreadable_row(ref, unreadable, sha256, memory))
    events, problems = shelf.events(ref, memory.num_events)
    if known is not None and _digest(events[: known.num_events]) != known.events_sha256:
        return Finding(_tampered(known, "an event that was seen before is gone or changed"), tuple(problems))
    standing, ignored = _standing(signed, events, owner, shelf, memory)
    checked = () if known is None or reread_files else tuple(known.checks)
    verdict = _judge(shelf, signed, owner, standing, memory, checked, check_artifact)
    row = _row(signed, verdict, events, memory, forget=standing.deleted)
    return Finding(row, (*problems, *ignored))


def _judge(
    shelf: Shelf,
    signed: SignedManifest,
    owner: OwnerRecord | MosError,
    standing: Standing,
    memory: Memory,
    checked: tuple[str, ...],
    check_artifact: ArtifactCheck,
) -> Verdict:
    """The verdict on a manifest that can be read; `checked` are the checks its files passed before, if any."""
    manifest, limits = signed.manifest, shelf.record.limits
    if isinstance(owner, MosError):
        return Verdict(State.QUARANTINED, str(owner))
    try:
        check_manifest_signature(signed, owner, memory.first_seen_at, limits)
        if standing.deleted:
            return Verdict(State.DELETED, standing.reason)
        check_words(manifest)
        check_licence(manifest)
        check_limits(manifest, limits)
        checks = checked or (*_OWN_CHECKS, *_check_files(shelf, manifest, check_artifact))
    except (ObjectMissingError, IntegrityError):
        return Verdict(State.UPLOADED, "a file of its manifest is missing or damaged")
    except TryAgainError:
        raise
    except MosError as error:
        return Verdict(State.QUARANTINED, str(error))
    if standing.yanked:
        return Verdict(State.YANKED, standing.reason, checks)
    if limits.needs_approval and not standing.approved:
        return Verdict(State.CHECKED, "waits for the administrator's approval", checks)
    return Verdict(State.LISTED, "", checks)


def _check_files(shelf: Shelf, manifest: Manifest, check_artifact: ArtifactCheck) -> tuple[str, ...]:
    files = {entry.role: shelf.file(manifest.ref, entry) for entry in manifest.files if entry.role != "preview"}
    for preview in manifest.previews:
        if not shelf.file(manifest.ref, preview).startswith(_PICTURES):
            raise BadInputError(f"preview {preview.sha256[:12]}… is neither PNG nor JPEG")
    return ("digests", "previews", *check_artifact(manifest, files, shelf.record.limits))


def _standing(
    signed: SignedManifest,
    events: Sequence[SignedEvent],
    owner: OwnerRecord | MosError,
    shelf: Shelf,
    memory: Memory,
) -> tuple[Standing, list[str]]:
    if isinstance(owner, MosError):
        return Standing(), []
    return accepted_events(signed, events, owner, shelf.record.administrator, memory.num_events)


def _memory(known: Row | None, now: str, snapshot: int) -> Memory:
    if known is None:
        return Memory(manifest_sha256="", first_seen_at=now, first_seen_snapshot=snapshot, num_events=0)
    return Memory(
        manifest_sha256=known.manifest_sha256,
        first_seen_at=known.first_seen_at,
        first_seen_snapshot=known.first_seen_snapshot,
        num_events=known.num_events,
    )


def _row(
    signed: SignedManifest, verdict: Verdict, events: Sequence[SignedEvent], memory: Memory, *, forget: bool
) -> Row:
    return Row(
        **describe(signed.manifest, forget=forget),
        **_judgement(verdict),
        first_seen_at=memory.first_seen_at,
        first_seen_snapshot=memory.first_seen_snapshot,
        manifest_sha256=signed.sha256,
        key_id=signed.envelope.key_id,
        num_events=len(events),
        events_sha256=_digest(events),
    )


def _judgement(verdict: Verdict) -> dict[str, Any]:
    return {
        "state": verdict.state.value,
        "reason": verdict.reason,
        "verdict": verdict.state.value,
        "verdict_reason": verdict.reason,
        "checks": list(verdict.checks),
    }


def _tampered(known: Row, reason: str) -> Row:
    """The row of a version whose first-seen bytes are no longer there; what is remembered of them stays."""
    return replace(known, **_judgement(Verdict(State.TAMPERED, reason)))


def _unreadable_row(ref: ConceptRef, reason: str, sha256: str, memory: Memory) -> Row:
    """The row of a version whose manifest nobody can read: quarantined, with nothing taken from it."""
    blank: dict[Any, Any] = {str: "", int: 0, bool: False, list[str]: []}
    empty = {field.name: blank[field.type] for field in fields(Row)}
    return Row(
        **{
            **empty,
            **_judgement(Verdict(State.QUARANTINED, reason)),
            "owner": ref.owner,
            "concept": ref.name,
            "version": ref.version,
            "first_seen_at": memory.first_seen_at,
            "first_seen_snapshot": memory.first_seen_snapshot,
            "manifest_sha256": sha256,
            "events_sha256": _digest([]),
        }
    )


def _digest(events: Sequence[SignedEvent]) -> str:
    """One sha256 over the exact bytes of all events in order."""
    return sha256_hex("".join(item.sha256 for item in events).encode())
