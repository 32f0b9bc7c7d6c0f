"""Places that kill their own worker, for real, before or after a chosen write, or hold it while others kill it."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.checkpoint import RunPlace
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


@dataclass(frozen=True)
class HoldingPlaces:
    """Opens a run's place such that a worker stays at its second checkpoint until a file is there.

    Attributes:
        url: Directory of the registry.
        gate: The file.
        patience_s: After so long the worker goes on without it.
    """

    url: str
    gate: Path
    patience_s: float = 300.0

    def __call__(self, run_id: str) -> "HoldingPlace":
        return HoldingPlace(self, run_id)


class PassingPlace:
    """A place in front of a run's own."""

    def __init__(self, place: RunPlace) -> None:
        self._place = place

    def create(self, name: str, data: bytes) -> bool:
        return self._place.create(name, data)

    def put(self, name: str, data: bytes) -> None:
        self._place.put(name, data)

    def get(self, name: str) -> bytes:
        return self._place.get(name)

    def names(self, folder: str = "") -> Iterator[str]:
        return self._place.names(folder)

    def delete(self, name: str) -> None:
        self._place.delete(name)


class HoldingPlace(PassingPlace):
    def __init__(self, plan: HoldingPlaces, run_id: str) -> None:
        super().__init__(RegistryPlaces(plan.url)(run_id))
        self._plan, self._pointers = plan, 0

    def create(self, name: str, data: bytes) -> bool:
        self._pointers += name.startswith("pointers/")
        deadline = time.monotonic() + self._plan.patience_s
        while self._pointers > 1 and not self._plan.gate.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return super().create(name, data)


class KillingPlace(PassingPlace):
    def __init__(self, plan: KillingPlaces, run_id: str) -> None:
        super().__init__(RegistryPlaces(plan.url)(run_id))
        self._plan, self._count = plan, 0

    def create(self, name: str, data: bytes) -> bool:
        self._maybe_kill(name, is_after=False)
        is_new = super().create(name, data)
        self._maybe_kill(name, is_after=True)
        return is_new

    def delete(self, name: str) -> None:
        self._maybe_kill(f"delete {name}", is_after=False)
        super().delete(name)
        self._maybe_kill(f"delete {name}", is_after=True)

    def _maybe_kill(self, name: str, *, is_after: bool) -> None:
        plan = self._plan
        if not name.startswith(plan.kind) or is_after != plan.is_after:
            return
        self._count += 1
        if self._count == plan.number and not plan.marker.exists():
            plan.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
