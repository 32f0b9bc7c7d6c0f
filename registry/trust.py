"""Who may sign what, as pure decisions over documents already read."""

from collections.abc import Sequence
from dataclasses import dataclass

from mos.errors import MosError
from registry.errors import SignatureError
from registry.event import Event, SignedEvent, Standing, standing
from registry.fields import check_time
from registry.grant import Grant
from registry.keys import PublicKey
from registry.manifest import Manifest, SignedManifest
from registry.records import KeyRecord, Limits, OwnerRecord

CLOCK_SKEW_S = 600.0
"""How far a publisher's clock may run ahead of the indexer's."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the catalogue remembers of a version: the first-seen rule rests on it.

    Attributes:
        manifest_sha256: Of the bytes first seen; they stand for good.
        first_seen_at: When.
        first_seen_snapshot: In which snapshot the version first appeared.
        num_events: Events accepted so far; a key revoked later does not undo them.
    """

    manifest_sha256: str
    first_seen_at: str
    first_seen_snapshot: int
    num_events: int


def check_manifest_signature(signed: SignedManifest, owner: OwnerRecord, first_seen_at: str, limits: Limits) -> str:
    """Check that the owner, or a cluster with the owner's grant, signed a manifest.

    Args:
        signed: The manifest.
        owner: The owner's record, already verified.
        first_seen_at: When the indexer first saw these bytes.
        limits: The registry's; its grace for grants is used.

    Returns:
        The id of the owner's key the trust rests on.

    Raises:
        SignatureError: If nobody entitled signed it; says who did and what ended the entitlement.
    """
    what = f"manifest of {signed.manifest.ref}"
    try:
        if signed.manifest.grant is None:
            record = _enrolled_key(owner, signed.envelope.key_id, what)
            signed.envelope.verify(record.public, what)
        else:
            record = _check_grant(signed, owner, first_seen_at, limits)
        _check_standing(record, signed.manifest.created_at, first_seen_at, what)
    except SignatureError:
        raise
    except MosError as error:
        raise SignatureError(f"{what}: {error}") from error
    if check_time(signed.manifest.created_at, what) > check_time(first_seen_at, what) + CLOCK_SKEW_S:
        raise SignatureError(f"{what}: dated {signed.manifest.created_at}, after it was seen; set the clock")
    return record.public.key_id


def accepted_events(
    signed: SignedManifest,
    events: Sequence[SignedEvent],
    owner: OwnerRecord,
    administrator: PublicKey,
    num_remembered: int,
) -> tuple[Standing, list[str]]:
    """Replay the events that count and say what is wrong with the others.

    Args:
        signed: The manifest they speak of.
        events: In order, from number 1.
        owner: The owner's record.
        administrator: Key of the registry's administrator.
        num_remembered: How many of them an earlier catalogue accepted.

    Returns:
        What they add up to, and a line for each that does not count.
    """
    counted: list[tuple[Event, bool]] = []
    problems = []
    for item in events:
        what = f"event {item.event.number} of {item.event.ref}"
        try:
            if item.event.manifest_sha256 != signed.sha256:
                raise SignatureError(f"{what}: speaks of another manifest")
            counted.append((item.event, _check_event(item, owner, administrator, num_remembered, what)))
        except MosError as error:
            problems.append(str(error))
    return standing(counted), problems


def _check_event(
    item: SignedEvent, owner: OwnerRecord, administrator: PublicKey, num_remembered: int, what: str
) -> bool:
    """Whether the administrator signed it; raises SignatureError if nobody entitled did."""
    if item.envelope.key_id == administrator.key_id:
        item.envelope.verify(administrator, what)
        return True
    if item.event.action == "approve":
        raise SignatureError(f"{what}: only the administrator approves")
    record = _enrolled_key(owner, item.envelope.key_id, what)
    item.envelope.verify(record.public, what)
    if record.status != "active" and item.event.number > num_remembered:
        ended = check_time(record.ended_at or "", what)
        if record.status == "revoked" or check_time(item.event.at, what) > ended:
            raise SignatureError(f"{what}: signed with key {record.public.key_id}, {record.status} {record.ended_at}")
    return False


def _enrolled_key(owner: OwnerRecord, key_id: str, what: str) -> KeyRecord:
    for record in owner.keys:
        if record.public.key_id == key_id:
            return record
    raise SignatureError(f"{what}: signed by key {key_id}, which is none of {owner.owner}'s; enrol it first")


def _check_standing(record: KeyRecord, created_at: str, first_seen_at: str, what: str) -> None:
    """A retired key counts for what it signed before; a revoked one only for what was seen before."""
    if record.status == "active":
        return
    ended = check_time(record.ended_at or "", what)
    seen = created_at if record.status == "retired" else first_seen_at
    if check_time(seen, what) > ended:
        raise SignatureError(
            f"{what}: signed with key {record.public.key_id}, {record.status} {record.ended_at}; use the new key"
        )


def _check_grant(signed: SignedManifest, owner: OwnerRecord, first_seen_at: str, limits: Limits) -> KeyRecord:
    """The owner's key that signed the enclosed grant, once everything the grant says holds."""
    manifest, envelope = signed.manifest, signed.manifest.grant
    what = f"grant in manifest of {manifest.ref}"
    if envelope is None:
        raise SignatureError(f"{what}: there is none")
    record = _enrolled_key(owner, envelope.key_id, what)
    envelope.verify(record.public, what)
    grant = Grant.read(envelope)
    signed.envelope.verify(grant.publisher, f"manifest of {manifest.ref}")
    _check_grant_covers(grant, manifest, what)
    deadline = check_time(grant.expires_at, what)
    if check_time(manifest.created_at, what) > deadline:
        raise SignatureError(f"{what}: expired {grant.expires_at}; submit again")
    if check_time(first_seen_at, what) > deadline + limits.grant_grace_s:
        raise SignatureError(f"{what}: expired {grant.expires_at}, first seen {first_seen_at}; submit again")
    return record


def _check_grant_covers(grant: Grant, manifest: Manifest, what: str) -> None:
    if (grant.ref.owner, grant.ref.name) != (manifest.ref.owner, manifest.ref.name):
        raise SignatureError(f"{what}: it is for {grant.ref}")
    if grant.run_id != manifest.run_id:
        raise SignatureError(f"{what}: it is for run {grant.run_id}, the manifest is of run {manifest.run_id}")
    if manifest.recipe.get("spec_sha256") != grant.spec_sha256:
        raise SignatureError(f"{what}: the recipe was not made from the specification the owner allowed")
