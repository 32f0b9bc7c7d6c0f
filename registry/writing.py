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


def ensure_blob(store: ObjectStore, key: str, data: bytes, now_s: float) -> None:
    """See to it that a file named by its sha256 is there, whole and fresh; a damaged one is replaced."""
    found = store.head(key)
    if found is None:
        try:
            store.create(key, data)
        except ObjectExistsError:
            found = store.head(key)
        else:
            return
    if found is not None and now_s - found.modified_s < REFRESH_AFTER_S and found.size_bytes == len(data):
        try:
            if sha256_hex(store.get(key)) == sha256_hex(data):
                return
        except ObjectMissingError:
            pass
    store.put(key, data)
