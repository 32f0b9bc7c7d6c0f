"""Who gets the next free slot: pure admission rules over queued runs and living workers.

A worker holds one frozen base and several slots on it; runs of different owners share it and come and go
between steps. The next slot goes to the owner who has the fewest (fair share) and, among equals, to the one
whose last turn is longest ago; within that owner's limit, and among an owner's runs to the oldest. It is taken
on the worker with the most room.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class QueuedRun:
    """A run that waits for a slot, in the order of submission.

    Attributes:
        run_id: The run.
        owner: Whose it is.
        base: The base it trains on; only a worker that holds this base can take it.
        memory_bytes: What its slot adds to a worker.
    """

    run_id: str
    owner: str
    base: str
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkerRoom:
    """A worker's room: its base, how many slots are free, and the memory left for them."""

    name: str
    base: str
    free_slots: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one cluster.

    Attributes:
        slots_per_worker: Concepts in training at once on one frozen base.
        max_workers: Trainer actors at once.
        max_slots_per_owner: Slots one owner may hold at once; 0 for no limit.
    """

    slots_per_worker: int = 1
    max_workers: int = 3
    max_slots_per_owner: int = 0

    def __post_init__(self) -> None:
        if self.slots_per_worker < 1 or self.max_workers < 1 or self.max_slots_per_owner < 0:
            raise ValueError(f"not usable as limits: {self}")


@dataclass(frozen=True, kw_only=True)
class Admission:
    """One run goes to one worker."""

    run_id: str
    worker: str


def slots_worth_filling(step_seconds: Mapping[int, float], most: int, *, tolerance: float = 0.1) -> int:
    """How many slots of a worker to fill, from what it has measured of itself so far.

    A number that has not been tried yet is; one that made the worker as a whole slower than a smaller one did
    is not tried again.

    Args:
        step_seconds: Slots in use -> measured seconds of one step of all of them.
        most: The limit.
        tolerance: By how much throughput may fall before it counts as slower: measurements are noisy.
    """
    best, best_rate = 1, 0.0
    for slots in sorted(slots for slots in step_seconds if slots <= most):
        rate = slots / step_seconds[slots]
        if rate < best_rate * (1 - tolerance):
            return best
        if rate > best_rate:
            best, best_rate = slots, rate
    return most


def admit(
    queue: Sequence[QueuedRun],
    workers: Sequence[WorkerRoom],
    held: Mapping[str, int],
    limits: Limits,
    turns: Mapping[str, int] | None = None,
) -> list[Admission]:
    """Fill the free slots.

    Args:
        queue: Waiting runs, oldest first.
        workers: Living workers with their room.
        held: Owner -> slots held already.
        limits: The cluster's bounds.
        turns: Owner -> number of their last admission, growing over time; none is before all.

    Returns:
        Whom to put where, in order of admission; runs that find no room stay queued.
    """
    waiting, slots, room = list(queue), Counter(held), {worker.name: worker for worker in workers}
    last = dict(turns or {})
    admissions: list[Admission] = []
    while True:
        chosen = _choose(waiting, room, slots, last, limits)
        if chosen is None:
            return admissions
        run, worker = chosen
        last[run.owner] = max(last.values(), default=0) + 1
        admissions.append(Admission(run_id=run.run_id, worker=worker.name))
        waiting.remove(run)
        slots[run.owner] += 1
        room[worker.name] = WorkerRoom(
            name=worker.name,
            base=worker.base,
            free_slots=worker.free_slots - 1,
            free_bytes=worker.free_bytes - run.memory_bytes,
        )


def _choose(
    waiting: Sequence[QueuedRun],
    room: Mapping[str, WorkerRoom],
    slots: Mapping[str, int],
    last: Mapping[str, int],
    limits: Limits,
) -> tuple[QueuedRun, WorkerRoom] | None:
    allowed = [run for run in waiting if _below_limit(slots.get(run.owner, 0), limits)]
    order = sorted(allowed, key=lambda run: (slots.get(run.owner, 0), last.get(run.owner, 0)))  # stable: oldest first
    for run in order:
        fits = [
            worker
            for worker in room.values()
            if worker.free_slots > 0 and worker.base == run.base and worker.free_bytes >= run.memory_bytes
        ]
        if fits:
            return run, max(fits, key=lambda worker: (worker.free_slots, worker.free_bytes))
    return None


def _below_limit(held: int, limits: Limits) -> bool:
    return limits.max_slots_per_owner == 0 or held < limits.max_slots_per_owner
