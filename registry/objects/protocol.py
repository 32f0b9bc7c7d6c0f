"""What the registry asks of an object store."""

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from registry.layout import Stored


class ObjectStore(Protocol):
    """Whole objects under keys of plain segments; every write is all or nothing.

    Every method raises `StoreBusyError` when the store does not answer, is full or fails in passing, and
    `NotAllowedError` when it forbids the action.
    """

    @property
    def url(self) -> str:
        """Where this store is, for messages."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Write a new object; of any number of racing creates of one key exactly one succeeds.

        Raises:
            ObjectExistsError: If the key is taken.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write an object whether or not one is there; readers see the old bytes or the new."""
        ...

    def put_all(self, objects: Mapping[str, bytes], *, present: Collection[str] = ()) -> None:
        """Write objects as `put` does, together where that is cheaper; killed on the way, some are there and some not.

        When it returns, these objects and those `present`, which were found and not written, outlast a power cut.
        """
        ...

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        """The whole object, or its first `at_most` bytes: strangers decide how long their objects are.

        Raises:
            ObjectMissingError: If there is none.
        """
        ...

    def head(self, key: str) -> Stored | None:
        """Size and time of an object, or None."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[Stored]:
        """Objects whose keys start with `prefix` (empty or ending in /) and sort after `after`, by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; none there is not an error."""
        ...

    def check_conditional_writes(self, prefix: str) -> None:
        """Create one key under `prefix` twice and insist that the second loses.

        Raises:
            UnsafeBackendError: If both won; this store must not hold a registry.
        """
        ...
