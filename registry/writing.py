"""Writing that may be repeated: a lost reply, a killed process or a second caller changes nothing."""

from registry.documents import sha256_hex
from registry.errors import ObjectExistsError, ObjectMissingError, StoreBusyError
from registry.objects.protocol import ObjectStore
from registry.objects.settled import read_settled

REFRESH_AFTER_S = 6 * 3600.0
"""A file found again is written again after this long, so that a sweep never takes it for forgotten."""


def create_or_same(store: ObjectStore, key: str, data: bytes) -> bool:
    """Create an object, or find these very bytes there.

    A create whose reply was lost is retried below us and then loses to itself: reading back tells.

    Returns:
        Whether this call created it.

    Raises:
        ObjectExistsError: If other bytes are there.
    """
    for _ in range(3):
        try:
            store.create(key, data)
        except ObjectExistsError:
            try:
                found = read_settled(store, key, sha256_hex(data))
            except ObjectMissingError:
                continue
            if found == data:
                return False
            raise
        return True
    raise StoreBusyError(f"{store.url}/{key}: neither there nor free; try again")


def holds_blob(store: ObjectStore, key: str, sha256: str, size_bytes: int, now_s: float) -> bool:
    """Whether a file named by its sha256 is there, whole, and too fresh for a sweep to take it."""
    found = store.head(key)
    if found is None or found.size_bytes != size_bytes or now_s - found.modified_s >= REFRESH_AFTER_S:
        return False
    try:
        return sha256_hex(store.get(key)) == sha256
    except ObjectMissingError:
        return False
