"""The start-up test of a store: two conditional creates of one key, of which the second must lose."""

import contextlib

from registry.errors import ObjectExistsError, UnsafeBackendError
from registry.objects.protocol import ObjectStore
from registry.objects.settled import read_settled
from registry.ulid import new_ulid


def check_conditional_writes(store: ObjectStore, prefix: str) -> None:
    """Run the test under `prefix` and remove what it wrote.

    Raises:
        UnsafeBackendError: If the second create won too, or replaced the bytes of the first.
    """
    key = f"{prefix}{new_ulid()}-selftest"
    with contextlib.suppress(ObjectExistsError):  # nobody else has this key: a reply was lost
        store.create(key, b"first")
    try:
        lost = False
        with contextlib.suppress(ObjectExistsError):
            store.create(key, b"second")
            lost = True
        if lost or read_settled(store, key) != b"first":
            raise UnsafeBackendError(
                f"{store.url}: this store ignores conditional writes (If-None-Match), so two owners could overwrite "
                "each other; use AWS S3, Ceph radosgw 16 or newer, MinIO, or a local directory"
            )
    finally:
        store.delete(key)
