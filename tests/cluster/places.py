"""A run's private place in memory, which can die between any two writes."""

import threading
from collections.abc import Iterator

from registry.errors import ObjectExistsError, ObjectMissingError


class KilledError(BaseException):
    """The worker was killed here; nothing may catch it."""


class MemoryPlace:
    """Objects in a dict; `kill_before` says before which write the worker dies."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.writes = 0
        self.kill_before: int | None = None
        self._lock = threading.Lock()

    def create(self, name: str, data: bytes) -> bool:
        self._count()
        with self._lock:
            if self.objects.get(name, data) != data:
                raise ObjectExistsError(f"{name} is taken")
            is_new = name not in self.objects
            self.objects[name] = data
            return is_new

    def put(self, name: str, data: bytes) -> None:
        self._count()
        self.objects[name] = data

    def get(self, name: str) -> bytes:
        if name not in self.objects:
            raise ObjectMissingError(f"{name} is not there")
        return self.objects[name]

    def names(self, folder: str = "") -> Iterator[str]:
        yield from sorted(name for name in self.objects if name.startswith(f"{folder}/" if folder else ""))

    def delete(self, name: str) -> None:
        self._count()
        self.objects.pop(name, None)

    def _count(self) -> None:
        if self.writes == self.kill_before:
            raise KilledError
        self.writes += 1
