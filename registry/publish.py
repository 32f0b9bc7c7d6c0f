"""The commit protocol: files first, then a hint, then the manifest, whose creation is the publication.

    1. find out whether this run was published before, and the next free version
    2. the files, under their sha256: write, or find the same bytes
    3. an empty hint for the indexer (before the commit, so that no committed version is without one)
       both in one batch, which has reached the disk when the next step begins
    4. create the manifest; when the version is taken, read it back:
       the same bytes or the same run id - it is done; gone - try again; another - sign the next version
Killed anywhere, nothing is visible before step 4 and everything after it; run again, it converges.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mos.concept import ConceptRef
from mos.errors import ConflictError, MosError
from registry.documents import sha256_hex
from registry.errors import ObjectExistsError, ObjectMissingError, StoreBusyError
from registry.keys import SigningKey
from registry.layout import blob_key, hint_key, manifest_key
from registry.manifest import Manifest, SignedManifest
from registry.objects.protocol import ObjectStore
from registry.objects.settled import read_settled
from registry.reading import Shelf
from registry.ulid import new_ulid
from registry.writing import holds_blob

MAX_RACES = 1000
"""How many versions may be lost to others in one call before it gives up."""


@dataclass(frozen=True)
class Publication:
    """What came of it.

    Attributes:
        ref: The version that holds this run.
        manifest_sha256: Of its manifest's bytes.
        is_new: Whether this call created it.
    """

    ref: ConceptRef
    manifest_sha256: str
    is_new: bool


def publish(
    shelf: Shelf,
    draft: Manifest,
    files: dict[str, bytes],
    key: SigningKey,
    *,
    clock: Callable[[], float] = time.time,
) -> Publication:
    """Publish a version, or find it published.

    Args:
        shelf: The registry.
        draft: The manifest; its version is replaced by the one won.
        files: sha256 -> bytes of every file the draft names.
        key: Signs; the owner's, or a cluster's when the draft carries a grant.
        clock: Unix seconds.

    Raises:
        StoreBusyError: If the store fails; running it again converges.
        ConflictError: If the concept has no version left, or others kept winning.
    """
    concept = ConceptRef(draft.ref.owner, draft.ref.name)
    version = 1
    for ref, found in _published(shelf, concept):
        if found is not None and found.manifest.run_id == draft.run_id:
            _mend(shelf, found, files, clock())
            return Publication(ref, found.sha256, is_new=False)
        version = (ref.version or 0) + 1
    _write_files_and_hint(shelf.store, concept, files, clock())
    return _commit(shelf.store, replace(draft, ref=concept), version, key)


def _mend(shelf: Shelf, found: SignedManifest, files: dict[str, bytes], now_s: float) -> None:
    """See to it that the files of a version published before are whole, unless they were deleted for good."""
    ref = found.manifest.ref
    if shelf.is_deleted(ref):
        return
    named = {entry.sha256: files[entry.sha256] for entry in found.manifest.files if entry.sha256 in files}
    _write_files_and_hint(shelf.store, ref, named, now_s)
    _settle(shelf.store, ref)


def _commit(store: ObjectStore, draft: Manifest, version: int, key: SigningKey) -> Publication:
    for _ in range(MAX_RACES):
        if version > 999_999:
            raise ConflictError(f"{draft.ref}: has no version left; choose another name")
        signed = replace(draft, ref=draft.ref.at(version))
        data = signed.sign(key)
        outcome = _create_or_read(store, signed.ref, data)
        if outcome is None:
            return Publication(signed.ref, sha256_hex(data), is_new=True)
        if outcome == data or _run_of(outcome, signed.ref) == draft.run_id:
            _settle(store, signed.ref)
            return Publication(signed.ref, sha256_hex(outcome), is_new=outcome == data)
        version += 1
    raise ConflictError(f"{draft.ref}: others published {MAX_RACES} versions meanwhile; run it again")


def _create_or_read(store: ObjectStore, ref: ConceptRef, data: bytes) -> bytes | None:
    """Create a manifest and return None, or return the bytes that were there first."""
    for _ in range(3):
        try:
            store.create(manifest_key(ref), data)
        except ObjectExistsError:
            try:
                return read_settled(store, manifest_key(ref))
            except ObjectMissingError:
                continue
        return None
    raise StoreBusyError(f"{store.url}/{manifest_key(ref)}: neither there nor free; try again")


def _published(shelf: Shelf, concept: ConceptRef) -> Iterator[tuple[ConceptRef, SignedManifest | None]]:
    """Every version published so far, by key up to the highest one listed; unreadable ones as None.

    One that is not listed yet is met where this publication would create it.
    """
    last = max(shelf.versions(concept, past_listing=False), default=0)
    for version in range(1, last + 1):
        ref = concept.at(version)
        try:
            yield ref, shelf.manifest(ref, settled=True)
        except ObjectMissingError:
            continue
        except StoreBusyError:
            raise
        except MosError:
            yield ref, None


def _run_of(data: bytes, ref: ConceptRef) -> str | None:
    try:
        return SignedManifest.from_bytes(data, ref).manifest.run_id
    except MosError:
        return None


def _write_files_and_hint(store: ObjectStore, concept: ConceptRef, files: dict[str, bytes], now_s: float) -> None:
    """Put everything in place that a manifest promises; on return it is on the disk, whoever wrote it."""
    writing, present = {}, []
    for sha256, data in sorted(files.items()):
        key = blob_key(concept.owner, sha256)
        if holds_blob(store, key, sha256, len(data), now_s):
            present.append(key)
        else:
            writing[key] = data
    writing[hint_key(concept.owner, concept.name, new_ulid())] = b""
    store.put_all(writing, present=present)


def _settle(store: ObjectStore, ref: ConceptRef) -> None:
    """A manifest that another attempt created may not have reached the disk yet; wait until it has."""
    store.put_all({}, present=[manifest_key(ref)])
