"""After publication: yank and unyank, approve, delete for good, and which fusions a deletion touches."""

import contextlib
import shutil
from collections.abc import Callable

from mos.concept import ConceptRef
from mos.errors import ConflictError, NotAllowedError, NotFoundError, TryAgainError
from registry.documents import sha256_hex
from registry.errors import ObjectExistsError, ObjectMissingError
from registry.event import Action, Event, SignedEvent
from registry.fields import format_time
from registry.home import Home
from registry.keys import SigningKey
from registry.layout import (
    Stored,
    blob_key,
    event_key,
    hint_key,
    manifests_prefix,
    parse_manifest_key,
    run_prefix,
)
from registry.manifest import Manifest, SignedManifest
from registry.objects.protocol import ObjectStore
from registry.reading import Catalogue, Shelf, readable_manifest
from registry.row import Row, State
from registry.trust import accepted_events
from registry.ulid import new_ulid


def withdraw(
    shelf: Shelf, ref: ConceptRef, action: Action, key: SigningKey, reason: str, clock: Callable[[], float]
) -> list[ConceptRef]:
    """Write an event for a version, or for every version of a concept; repeated, it changes nothing.

    Deleting first says so (from then on nobody resolves it), then removes the bytes. Files that another
    version of the owner still needs are not removed unless that version is deleted too.

    Args:
        shelf: The registry.
        ref: A version, or a concept without one.
        action: What happens.
        key: The owner's or the administrator's.
        reason: For people.
        clock: Unix seconds.

    Returns:
        The versions concerned.

    Raises:
        NotFoundError: If there is no such version.
        ConflictError: If another version shares the bytes that are to be deleted.
    """
    refs = [ref] if ref.version is not None else [ref.at(version) for version in shelf.versions(ref)]
    if not refs:
        raise NotFoundError(f"{ref}: no such concept in {shelf.store.url}; see mos concept ls")
    manifests = [shelf.manifest(one, settled=True) for one in refs]
    if action == "delete":
        _refuse_shared(shelf, manifests)
    for signed in manifests:
        _record(shelf, signed, action, key, reason, format_time(clock()))
    if action == "delete":
        for signed in manifests:
            remove_files(shelf, signed)
    return refs


def remove_files(shelf: Shelf, signed: SignedManifest) -> None:
    """Remove the bytes of a deleted version from the registry and from this home's cache.

    Also what its run left: staged weights, checkpoints, sample pictures. Whose credentials do not reach there leaves
    that to the next sweep.
    """
    for entry in signed.manifest.files:
        shelf.store.delete(blob_key(signed.manifest.ref.owner, entry.sha256))
    drop_cached(shelf.home, signed.manifest, signed.sha256)
    with contextlib.suppress(NotAllowedError):
        left = list(shelf.store.list(run_prefix(signed.manifest.run_id)))
        if is_where_made(shelf.store, left, signed.manifest):
            for stored in left:
                shelf.store.delete(stored.key)


def drop_cached(home: Home, manifest: Manifest, manifest_sha256: str) -> None:
    """Remove the files of a version from a home's cache."""
    for entry in manifest.files:
        for suffix in (".safetensors", ".picture", ""):
            home.drop(entry.sha256, suffix)
    shutil.rmtree(home.fused_path(manifest_sha256), ignore_errors=True)


def is_where_made(store: ObjectStore, objects: list[Stored], manifest: Manifest) -> bool:
    """Whether the private objects of a run include the weights of a version.

    The name of the run proves nothing, because a publisher is free to write another's into a manifest.
    """
    weights = manifest.weights
    for stored in objects:
        if stored.size_bytes == weights.size_bytes:
            with contextlib.suppress(ObjectMissingError):
                if sha256_hex(store.get(stored.key)) == weights.sha256:
                    return True
    return False


def affected(catalogue: Catalogue, ref: ConceptRef) -> list[Row]:
    """Every fusion that contains a concept, at any version if `ref` names none, directly or through another."""
    from registry.shards import read_table

    fusions: list[Row] = []
    for shard in catalogue.snapshot.data:
        table = read_table(catalogue.load(shard))
        fusions += [Row.from_dict(record) for record in table.to_pylist() if record["kind"] == "fusion"]
    found: dict[ConceptRef, Row] = {}
    wanted = {ref}
    while wanted:
        hits = [row for row in fusions if row.ref not in found and any(_contains(row, one) for one in wanted)]
        found.update({row.ref: row for row in hits})
        wanted = {row.ref for row in hits}
    return [found[one] for one in sorted(found)]


def _contains(row: Row, ref: ConceptRef) -> bool:
    return any(source == str(ref) or (ref.version is None and source.startswith(f"{ref}@")) for source in row.lineage)


def _record(shelf: Shelf, signed: SignedManifest, action: Action, key: SigningKey, reason: str, now: str) -> None:
    """Append an event, unless the last one already says the same; races are settled by the event's number."""
    ref = signed.manifest.ref
    shelf.store.put(hint_key(ref.owner, ref.name, new_ulid()), b"")
    for _ in range(100):
        events, problems = shelf.events(ref)
        if _is_moot(shelf, signed, events, action):
            return
        number = len(events) + len(problems) + 1
        event = Event(ref=ref, number=number, action=action, reason=reason, at=now, manifest_sha256=signed.sha256)
        try:
            shelf.store.create(event_key(ref, number), event.sign(key))
        except ObjectExistsError:
            continue
        return
    raise TryAgainError(f"{ref}: others write events all the time; run it again")


def _is_moot(shelf: Shelf, signed: SignedManifest, events: list[SignedEvent], action: Action) -> bool:
    try:
        owner = shelf.owner(signed.manifest.ref.owner)
    except ObjectMissingError:
        return False
    standing, _ = accepted_events(signed, events, owner, shelf.record.administrator, len(events))
    return {
        "delete": standing.deleted,
        "yank": standing.yanked or standing.deleted,
        "unyank": not standing.yanked or standing.deleted,
        "approve": standing.approved or standing.deleted,
    }[action]


def _refuse_shared(shelf: Shelf, manifests: list[SignedManifest]) -> None:
    """Refuse to delete weights that a version which stays still needs."""
    mine = {signed.manifest.ref: {entry.sha256 for entry in signed.manifest.files} for signed in manifests}
    doomed = set().union(*mine.values())
    owner = manifests[0].manifest.ref.owner
    rows = shelf.catalogue().owner(owner)
    deleted = {row.ref for row in rows if row.state == State.DELETED}
    for other in living_manifests(shelf, owner, known={row.ref for row in rows}, skip=set(mine) | deleted):
        shared = doomed & {entry.sha256 for entry in other.manifest.files}
        if shared:
            raise ConflictError(
                f"{manifests[0].manifest.ref}: shares a file with {other.manifest.ref}; delete that version too"
            )


def living_manifests(
    shelf: Shelf, owner: str, *, known: set[ConceptRef], skip: set[ConceptRef]
) -> list[SignedManifest]:
    """Every readable manifest of an owner that no deletion event speaks of, but for those to skip.

    Those `known` are asked for by key, because a listing may be stale.
    """
    listed = {ref for stored in shelf.store.list(manifests_prefix(owner)) if (ref := parse_manifest_key(stored.key))}
    found = []
    for ref in sorted((listed | known) - skip):
        with contextlib.suppress(ObjectMissingError):
            signed, _, _ = readable_manifest(shelf, ref)
            if signed is not None and not shelf.is_deleted(ref):
                found.append(signed)
    return found
