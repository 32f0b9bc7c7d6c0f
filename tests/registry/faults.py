"""A store that fails on purpose: dies, loses replies, is busy, shows old listings, damages bytes."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import Enum

from registry.errors import StoreBusyError
from registry.layout import Stored
from registry.objects import selftest
from registry.objects.protocol import ObjectStore

STALE_FOR_S = 3600.0
"""How long a listing may lag behind; stores that promise less are not supported."""


class Died(BaseException):
    """The process is gone; nothing in the code under test may catch this."""


class Fault(Enum):
    """What happens to one operation."""

    NONE = "none"
    DIES_BEFORE = "dies before"
    DIES_AFTER = "dies after"
    BUSY = "busy"
    LOST_REPLY = "lost reply"
    STALE_LISTING = "stale listing"
    FLIPPED = "flipped"
    TRUNCATED = "truncated"


class FaultyStore:
    """Passes operations on to a true store, with a fault for each as planned; implements `ObjectStore`.

    `plan` says which fault strikes which of the next operations, counted from 0; after it, none.
    """

    def __init__(self, inner: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self.inner, self.clock = inner, clock
        self.url = inner.url
        self.plan: dict[int, Fault] = {}
        self.count = 0
        self.struck: list[Fault] = []

    def arm(self, plan: dict[int, Fault]) -> None:
        """Begin a new plan."""
        self.plan, self.count = dict(plan), 0

    def create(self, key: str, data: bytes) -> None:
        """See `ObjectStore.create`; a lost reply is retried once, as an S3 client would, and may then lose."""
        fault = self._next((Fault.DIES_BEFORE, Fault.DIES_AFTER, Fault.BUSY, Fault.LOST_REPLY))
        self._before(fault)
        self.inner.create(key, data)
        if fault is Fault.LOST_REPLY:
            self.inner.create(key, data)
        self._after(fault)

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        fault = self._next((Fault.DIES_BEFORE, Fault.DIES_AFTER, Fault.BUSY, Fault.LOST_REPLY))
        self._before(fault)
        self.inner.put(key, data)
        self._after(fault)

    def put_all(self, objects: Mapping[str, bytes], *, present: Collection[str] = ()) -> None:
        """See `ObjectStore.put_all`; each object may meet a fault of its own."""
        for key, data in objects.items():
            self.put(key, data)

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        """See `ObjectStore.get`; bytes may come damaged, no two answers at the same place."""
        fault = self._next((Fault.DIES_BEFORE, Fault.BUSY, Fault.FLIPPED, Fault.TRUNCATED))
        self._before(fault)
        data = self.inner.get(key, at_most=at_most)
        if fault is Fault.FLIPPED and data:
            place = (len(data) // 2 + self.count) % len(data)
            return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        return data[: max(0, len(data) // 2 - self.count)] if fault is Fault.TRUNCATED else data

    def head(self, key: str) -> Stored | None:
        """See `ObjectStore.head`."""
        self._before(self._next((Fault.DIES_BEFORE, Fault.BUSY)))
        return self.inner.head(key)

    def list(self, prefix: str, after: str = "") -> Iterator[Stored]:
        """See `ObjectStore.list`; a stale listing lacks the newest object, if it was written in the last hour."""
        fault = self._next((Fault.DIES_BEFORE, Fault.BUSY, Fault.STALE_LISTING))
        self._before(fault)
        found = list(self.inner.list(prefix, after))
        if fault is Fault.STALE_LISTING and found:
            newest = max(found, key=lambda one: (one.modified_s, one.key))
            if self.clock() - newest.modified_s < STALE_FOR_S:
                found.remove(newest)
        yield from found

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        fault = self._next((Fault.DIES_BEFORE, Fault.DIES_AFTER, Fault.BUSY))
        self._before(fault)
        self.inner.delete(key)
        self._after(fault)

    def check_conditional_writes(self, prefix: str) -> None:
        """See `ObjectStore.check_conditional_writes`."""
        selftest.check_conditional_writes(self, prefix)

    def _next(self, possible: Sequence[Fault]) -> Fault:
        fault = self.plan.get(self.count, Fault.NONE)
        self.count += 1
        if fault in possible:
            self.struck.append(fault)
            return fault
        return Fault.NONE

    def _before(self, fault: Fault) -> None:
        if fault is Fault.DIES_BEFORE:
            raise Died
        if fault is Fault.BUSY:
            raise StoreBusyError("503 slow down")

    def _after(self, fault: Fault) -> None:
        if fault is Fault.DIES_AFTER:
            raise Died
