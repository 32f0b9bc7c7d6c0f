"""Places that kill their own worker: SIGKILL, for real, before or after a chosen write of the first attempt."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.places import RegistryPlaces


@dataclass(frozen=True)
class KillingPlaces:
    """Opens a run's place such that one write is the worker's last.

    Attributes:
        url: Directory of the registry.
        kind: Which writes count: the beginning of their names, such as `checkpoints/` or `pointers/`.
        number: The how-many-eth of them kills, from 1.
        is_after: Whether the write still happens.
        marker: File that is made at the kill, so that it happens once.
    """

    url: str
    kind: str
    number: int
    is_after: bool
    marker: Path

    def __call__(self, run_id: str) -> "KillingPlace":
        return KillingPlace(self, run_id)


class KillingPlace:
    def __init__(self, plan: KillingPlaces, run_id: str) -> None:
        self._plan, self._place, self._count = plan, RegistryPlaces(plan.url)(run_id), 0

    def create(self, name: str, data: bytes) -> bool:
        self._maybe_kill(name, is_after=False)
        is_new = self._place.create(name, data)
        self._maybe_kill(name, is_after=True)
        return is_new

    def put(self, name: str, data: bytes) -> None:
        self._place.put(name, data)

    def get(self, name: str) -> bytes:
        return self._place.get(name)

    def names(self, folder: str = "") -> Iterator[str]:
        return self._place.names(folder)

    def delete(self, name: str) -> None:
        self._maybe_kill(f"delete {name}", is_after=False)
        self._place.delete(name)
        self._maybe_kill(f"delete {name}", is_after=True)

    def _maybe_kill(self, name: str, *, is_after: bool) -> None:
        plan = self._plan
        if not name.startswith(plan.kind) or is_after != plan.is_after:
            return
        self._count += 1
        if self._count == plan.number and not plan.marker.exists():
            plan.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
