"""Checkpoints that survive a kill at any moment: the object first, then a pointer to it.

Under a run's private prefix:

    checkpoints/<sha256>              the state, whole, under the digest of its bytes
    pointers/<000001>.json            {"attempt", "step", "sha256", "size_bytes"}

A pointer is created only if absent, with the number after the newest one seen. So a kill before the pointer
leaves the previous checkpoint in force; a reader never sees half a checkpoint; and of two workers that hold
the same run (one was given up for lost but lives) the older one loses the race for the next number, learns
that it is fenced, and stops. A write whose answer was lost is read back: the same bytes are ours.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from cluster.errors import FencedError
from mos.errors import CheckFailedError
from registry.errors import ObjectExistsError, ObjectMissingError

_POINTERS = "pointers"
_OBJECTS = "checkpoints"


class RunPlace(Protocol):
    """The private place of one run: whole objects under plain names."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object; False if these very bytes are there, ObjectExistsError if other bytes are."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write an object, new or not."""
        ...

    def get(self, name: str) -> bytes:
        """Read an object; raises ObjectMissingError if there is none."""
        ...

    def names(self, folder: str = "") -> Iterator[str]:
        """Names of all objects, or of those below `folder/`, sorted."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; none there is not an error."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Which object is the newest checkpoint of a run.

    Attributes:
        attempt: The attempt that wrote it; a higher one fences the lower ones.
        step: Training steps done.
        sha256: Digest and name of the object.
        size_bytes: Its size.
    """

    attempt: int
    step: int
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state read back, and the pointer that named it."""

    pointer: Pointer
    data: bytes


class Checkpoints:
    """The checkpoints of one run, as one attempt sees them.

    Args:
        place: The run's private place.
        attempt: Number of this attempt, 1 for the first.
    """

    def __init__(self, place: RunPlace, *, attempt: int) -> None:
        self._place = place
        self._attempt = attempt
        self._number = 0

    def newest(self) -> Checkpoint | None:
        """Read the newest whole checkpoint, or None; later saves continue after it.

        Raises:
            FencedError: If a newer attempt wrote it.
            CheckFailedError: If the bytes are not those the pointer speaks of.
        """
        names = sorted(self._place.names(_POINTERS))
        if not names:
            return None
        self._number = _number(names[-1])
        pointer = self._read(self._number)
        if pointer.attempt > self._attempt:
            raise FencedError(f"attempt {self._attempt} is over: attempt {pointer.attempt} has taken the run")
        data = self._place.get(f"{_OBJECTS}/{pointer.sha256}")
        if len(data) != pointer.size_bytes or hashlib.sha256(data).hexdigest() != pointer.sha256:
            raise CheckFailedError(f"checkpoint {pointer.sha256[:12]}: its bytes do not match; start the run anew")
        return Checkpoint(pointer=pointer, data=data)

    def save(self, step: int, data: bytes) -> Pointer:
        """Write `data` as the newest checkpoint and drop all but the last two.

        Raises:
            FencedError: If a newer attempt has written meanwhile.
        """
        newest = None if self._number else self.newest()
        digest = hashlib.sha256(data).hexdigest()
        self._place.create(f"{_OBJECTS}/{digest}", data)
        pointer = Pointer(attempt=self._attempt, step=step, sha256=digest, size_bytes=len(data))
        if newest is None or newest.pointer != pointer:
            self._point(pointer)
            self._drop_old(keep=2)
        return pointer

    def _point(self, pointer: Pointer) -> None:
        document = json.dumps(asdict(pointer), sort_keys=True).encode()
        while True:
            number = self._number + 1
            try:
                self._place.create(_name(number), document)
            except ObjectExistsError:
                found = self._read(number)
                if found.attempt > self._attempt:
                    raise FencedError(
                        f"attempt {self._attempt} is over: attempt {found.attempt} has taken the run"
                    ) from None
                self._number = number
                continue
            self._number = number
            return

    def _read(self, number: int) -> Pointer:
        return Pointer(**json.loads(self._place.get(_name(number))))

    def _drop_old(self, *, keep: int) -> None:
        pointers = sorted(self._place.names(_POINTERS))
        with contextlib.suppress(ObjectMissingError):  # another attempt is dropping them
            kept = {self._read(_number(name)).sha256 for name in pointers[-keep:]}
            for name in pointers[:-keep]:
                digest = self._read(_number(name)).sha256
                if digest not in kept:
                    self._place.delete(f"{_OBJECTS}/{digest}")
                self._place.delete(name)


def last_attempt(place: RunPlace) -> int:
    """The number of the last attempt that wrote a checkpoint, 0 for none."""
    names = sorted(place.names(_POINTERS))
    return int(json.loads(place.get(names[-1]))["attempt"]) if names else 0


def _name(number: int) -> str:
    return f"{_POINTERS}/{number:06d}.json"


def _number(name: str) -> int:
    return int(name.removeprefix(f"{_POINTERS}/").removesuffix(".json"))
