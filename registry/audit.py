"""Reading everything again: does the registry still hold what its catalogue says?"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mos.concept import ConceptRef
from mos.errors import MosError, NotFoundError
from registry.errors import IntegrityError
from registry.layout import snapshot_key
from registry.reading import Catalogue, Shelf
from registry.row import Row, State
from registry.snapshot import read_snapshot
from registry.trust import check_manifest_signature

_USABLE = (State.LISTED.value, State.CHECKED.value, State.YANKED.value)


@dataclass(frozen=True)
class Complaint:
    """Something that is not as it should be, and where."""

    where: str
    what: str


def audit(shelf: Shelf, refs: Iterable[ConceptRef] = ()) -> tuple[int, list[Complaint]]:
    """Read manifests and files again and check signatures and digests.

    Args:
        shelf: The registry.
        refs: Which versions or concepts; everything usable in the catalogue, and its chain, if none.

    Returns:
        How many versions were read, and what was wrong.

    Raises:
        NotFoundError: If the catalogue knows none of those named.
    """
    catalogue = shelf.catalogue()
    wanted = list(refs)
    complaints = [] if wanted else list(_check_chain(shelf, catalogue))
    count = 0
    for row in _rows(catalogue, wanted):
        if row.state not in _USABLE:
            continue
        count += 1
        try:
            _check_version(shelf, row)
        except MosError as error:
            complaints.append(Complaint(str(row.ref), str(error)))
    return count, complaints


def _rows(catalogue: Catalogue, wanted: list[ConceptRef]) -> Iterator[Row]:
    if wanted:
        for ref in wanted:
            rows = [row for row in catalogue.concept(ref) if ref.version in (None, row.version)]
            if not rows:
                raise NotFoundError(f"{ref}: not in the catalogue of {catalogue.shelf.store.url}; see mos concept ls")
            yield from rows
        return
    yield from catalogue.rows()


def _check_version(shelf: Shelf, row: Row) -> None:
    signed = shelf.manifest(row.ref)
    if signed.sha256 != row.manifest_sha256:
        raise IntegrityError(f"{row.ref}: its manifest changed after it was first seen")
    check_manifest_signature(signed, shelf.owner(row.owner), row.first_seen_at, shelf.record.limits)
    for entry in signed.manifest.files:
        shelf.file(row.ref, entry)


def _check_chain(shelf: Shelf, catalogue: Catalogue) -> Iterator[Complaint]:
    """Follow the snapshots backwards as far as they are kept; each names the sha256 of the one before."""
    expected = catalogue.snapshot.previous_sha256
    for number in range(catalogue.snapshot.number - 1, 0, -1):
        try:
            found = read_snapshot(shelf.store, number, shelf.record.registry_id, shelf.record.indexer)
        except MosError as error:
            yield Complaint(snapshot_key(number), str(error))
            return
        if found is None:
            return
        if found[1] != expected:
            yield Complaint(snapshot_key(number), "is not the snapshot its successor was derived from")
        expected = found[0].previous_sha256
