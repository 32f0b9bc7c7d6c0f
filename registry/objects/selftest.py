"""The start-up test of a store: two conditional creates of one key, of which the second must lose."""

import contextlib

from registry.errors import ObjectExistsError, StoreBusyError, UnsafeBackendError
from registry.objects.protocol import ObjectStore
from registry.objects.settled import read_settled
from registry.ulid import new_ulid


def check_conditional_writes(store: ObjectStore, prefix: str) -> None:
    """Run the test under `prefix` and remove what it wrote.

    Raises:
        UnsafeBackendError: If the second create won too, or replaced the bytes of the first.
        StoreBusyError: If what comes back is neither: damaged on the way, which says nothing of the writes.
    """
    key = f"{prefix}{new_ulid()}-selftest"
    with contextlib.suppress(ObjectExistsError):  # nobody else has this key: a reply was lost
        store.create(key, b"first")
    try:
        has_won_twice = False
        with contextlib.suppress(ObjectExistsError):
            store.create(key, b"second")
            has_won_twice = True
        found = b"second" if has_won_twice else read_settled(store, key)
        if found == b"second":
            raise UnsafeBackendError(
                f"{store.url}: this store ignores conditional writes (If-None-Match), so two owners could overwrite "
                "each other; use AWS S3, Ceph radosgw 16 or newer, MinIO, or a local directory"
            )
        if found != b"first":
            raise StoreBusyError(f"{store.url}/{key}: {len(found)} bytes came back that nobody wrote; try again")
    finally:
        store.delete(key)
