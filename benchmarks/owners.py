"""A simulation of many owners on few GPUs, from measured step times and the cluster's own admission rules."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.slots import Limits, QueuedRun, WorkerRoom, admit


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One run: who, when, and how many steps it takes."""

    run_id: str
    owner: str
    at_s: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What came of it.

    Attributes:
        waits_s: Seconds in the queue, a run.
        utilisation: Share of slot seconds that were used, from the first arrival to the last finish.
        makespan_s: From the first arrival to the last finish.
        concepts_per_gpu_hour: Finished runs over GPU hours.
        fairness: Jain's index of the owners' mean waits: 1 when all waited alike.
    """

    waits_s: tuple[float, ...]
    utilisation: float
    makespan_s: float
    concepts_per_gpu_hour: float
    fairness: float


def arrivals(*, num_owners: int, hours: float, steps: Sequence[int], seed: int) -> list[Arrival]:
    """Owners who come at random times, one in five of them with several runs at once."""
    rng = np.random.default_rng(seed)
    made = []
    for owner in range(num_owners):
        at_s = float(rng.uniform(0, hours * 3600))
        number = int(rng.choice([1, 2, 5], p=[0.8, 0.15, 0.05]))
        sizes = [int(rng.choice(list(steps))) for _ in range(number)]
        made += [
            Arrival(run_id=f"{owner}-{index}", owner=f"owner-{owner}", at_s=at_s, steps=size)
            for index, size in enumerate(sizes)
        ]
    return sorted(made, key=lambda arrival: (arrival.at_s, arrival.run_id))


def simulate(
    runs: Sequence[Arrival], *, num_gpus: int, slots_per_gpu: int, step_seconds: Mapping[int, float], limits: Limits
) -> SimulationResult:
    """Play the arrivals through `admit`, event by event.

    Args:
        runs: In order of arrival.
        num_gpus: Workers, one a GPU.
        slots_per_gpu: Slots of each.
        step_seconds: Slots in use -> seconds of one step of all of them; a run's speed is taken when it starts,
            at full occupancy, which errs on the slow side.
        limits: The cluster's bounds.
    """
    seconds = step_seconds[slots_per_gpu]
    free = {f"gpu-{index:03d}": slots_per_gpu for index in range(num_gpus)}
    held: Counter[str] = Counter()
    queue: list[Arrival] = []
    ends: list[tuple[float, str, str]] = []
    waits: dict[str, float] = {}
    turns: dict[str, int] = {}
    by_id = {run.run_id: run for run in runs}
    coming = list(runs)[::-1]
    now_s = busy_s = 0.0
    while coming or ends or queue:
        now_s = min(coming[-1].at_s if coming else np.inf, ends[0][0] if ends else np.inf)
        while coming and coming[-1].at_s <= now_s:
            queue.append(coming.pop())
        while ends and ends[0][0] <= now_s:
            _, run_id, gpu = heapq.heappop(ends)
            free[gpu] += 1
            held[by_id[run_id].owner] -= 1
        for admission in admit(_queued(queue), _rooms(free), held, limits, turns):
            run = by_id[admission.run_id]
            turns[run.owner] = len(waits) + 1
            queue.remove(run)
            free[admission.worker] -= 1
            held[run.owner] += 1
            waits[run.run_id] = now_s - run.at_s
            busy_s += run.steps * seconds
            heapq.heappush(ends, (now_s + run.steps * seconds, run.run_id, admission.worker))
    return _result(runs, waits, busy_s, now_s - runs[0].at_s, num_gpus, slots_per_gpu)


def _queued(queue: Sequence[Arrival]) -> list[QueuedRun]:
    return [QueuedRun(run_id=run.run_id, owner=run.owner, base="base") for run in queue]


def _rooms(free: Mapping[str, int]) -> list[WorkerRoom]:
    return [WorkerRoom(name=name, base="base", free_slots=slots, free_bytes=1) for name, slots in free.items() if slots]


def _result(
    runs: Sequence[Arrival],
    waits: Mapping[str, float],
    busy_s: float,
    makespan_s: float,
    num_gpus: int,
    slots_per_gpu: int,
) -> SimulationResult:
    by_owner: dict[str, list[float]] = {}
    for run in runs:
        by_owner.setdefault(run.owner, []).append(waits[run.run_id])
    means = np.array([1.0 + np.mean(values) for values in by_owner.values()])
    return SimulationResult(
        waits_s=tuple(waits[run.run_id] for run in runs),
        utilisation=busy_s / (makespan_s * num_gpus * slots_per_gpu),
        makespan_s=makespan_s,
        concepts_per_gpu_hour=len(runs) / (num_gpus * makespan_s / 3600),
        fairness=float(means.sum() ** 2 / (len(means) * (means**2).sum())),
    )
