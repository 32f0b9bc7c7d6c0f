"""Brings queued training runs through their life on a pool of trainer actors.

`tick` looks once at everything: it fetches events (whose answer is the heartbeat), buries lost workers,
puts their runs back in the queue, passes on cancellations, admits runs to free slots, starts workers that
are wanted and closes those that are not. What to do about a failure is decided in `failure`, who gets a slot in
`slots`; here are the effects only.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster import metrics
from cluster.checkpoint import last_attempt
from cluster.errors import PendingTimeoutError, UnsatisfiableError, WorkerLostError, WorkerSilentError
from cluster.failure import Action, FaultKind, RetryPolicy, classify, decide, root_cause
from cluster.placement import TRAINER, Resources, check_satisfiable, describe, nodes_of, pending_timeout_s
from cluster.slots import Limits, QueuedRun, WorkerRoom, admit, slots_worth_filling
from cluster.trainer import OpenPlace, TrainerWorker, TrainingRequest, step_group

Event = dict[str, Any]

TERMINAL_EVENTS = frozenset({"staged", "cancelled", "failed", "fenced"})
"""Events after which a run needs no worker any more."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """How a pool of trainers is run.

    Attributes:
        limits: Slots, workers, and slots an owner may hold.
        resources: What one trainer asks for.
        retries: What happens after a lost worker.
        pending_timeout_s: How long a worker may wait for room.
        heartbeat_timeout_s: A worker that does not answer for so long is lost. Loading a base counts too.
        idle_timeout_s: A worker without a run is closed after so long.
        lease_s: In a shared pool: a run nobody asks about for so long is cancelled.
    """

    limits: Limits = field(default_factory=Limits)
    resources: Resources = TRAINER
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    pending_timeout_s: float = field(default_factory=pending_timeout_s)
    heartbeat_timeout_s: float = 600.0
    idle_timeout_s: float = 0.0
    lease_s: float = 30.0


@dataclass
class _Run:
    request: TrainingRequest
    base: str
    group: str
    attempt: int
    worker: str = ""
    failures: int = 0
    not_before: float = 0.0
    cancelled: bool = False


@dataclass
class _Worker:
    name: str
    group: str
    actor: Any
    placed: Any
    work: Any
    started_at: float
    heard_at: float
    is_placed: bool = False
    memory_bytes: int | None = None  # for slots; None until its base is loaded
    step_seconds: dict[int, float] = field(default_factory=dict)
    seen: int = 0
    poll: Any = None
    sent: list[Any] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)
    idle_since: float = 0.0


class Supervisor:
    """The driver's side of a pool of trainers.

    Args:
        open_place: Run id -> private place; used by workers and to learn the attempt number.
        config: Limits, resources, retries, timeouts.
        on_event: Called with each run's events, in order.
        is_cancelled: Asked on every tick whether a run should stop.
    """

    def __init__(
        self,
        open_place: OpenPlace,
        config: PoolConfig,
        *,
        on_event: Callable[[str, Event], None] = lambda *_: None,
        is_cancelled: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._open_place, self._config = open_place, config
        self._on_event, self._is_cancelled = on_event, is_cancelled
        self._queue: dict[str, _Run] = {}
        self._running: dict[str, _Run] = {}
        self._workers: dict[str, _Worker] = {}
        self._numbers, self._admissions = itertools.count(1), itertools.count(1)
        self._turns: dict[str, int] = {}
        self.outcomes: dict[str, Event] = {}

    def enqueue(self, request: TrainingRequest, base: str) -> None:
        """Queue a run; its attempts are numbered after those its checkpoints know of.

        Raises:
            UnsatisfiableError: If no node could ever hold its trainer.
        """
        ask = self._config.resources
        check_satisfiable(f"the trainer of {request.ref}", ask, nodes_of(ray.nodes()))
        attempt = last_attempt(self._open_place(request.run_id)) + 1
        group = step_group(base, request.config)
        self._queue[request.run_id] = _Run(request=request, base=base, group=group, attempt=attempt)
        self._tell(request.run_id, {"event": "queued", "attempt": attempt})

    @property
    def is_idle(self) -> bool:
        """Whether no run is queued or running."""
        return not self._queue and not self._running

    def worker_pids(self) -> dict[str, int]:
        """Worker name -> process id of the placed workers."""
        placed = [worker for worker in self._workers.values() if worker.is_placed]
        return {worker.name: int(ray.get(worker.placed)) for worker in placed}

    def run(self, *, pause_s: float = 0.1) -> dict[str, Event]:
        """Tick until every run has ended; returns each run's last event."""
        try:
            while not self.is_idle:
                self.tick()
                time.sleep(pause_s)
        finally:
            self.close()
        return self.outcomes

    def tick(self) -> None:
        """Look once at everything and do what is due."""
        for worker in list(self._workers.values()):
            self._look_at(worker)
        self._pass_on_cancellations()
        self._start_workers()
        self._admit()
        self._close_idle()

    def close(self) -> None:
        """End every worker of this pool; their unfinished runs keep their checkpoints."""
        for worker in self._workers.values():
            ray.kill(worker.actor)
        self._workers.clear()

    def _look_at(self, worker: _Worker) -> None:
        try:
            self._hear(worker)
        except Exception as error:  # every failure of a worker is judged in one place
            self._bury(worker, error)

    def _hear(self, worker: _Worker) -> None:
        now = time.monotonic()
        if not worker.is_placed:
            worker.is_placed = _is_ready(worker.placed)
            worker.heard_at = now
            if worker.is_placed:
                ray.get(worker.placed)
            elif now - worker.started_at > self._config.pending_timeout_s:
                raise PendingTimeoutError(self._no_room())
            return
        for answer in [worker.work, *worker.sent]:  # a lost message counts as a lost worker
            if _is_ready(answer):
                ray.get(answer)
                worker.sent = [other for other in worker.sent if other is not answer]
        worker.poll = worker.poll or worker.actor.poll.remote(worker.seen)
        if _is_ready(worker.poll):
            events, worker.poll, worker.heard_at = ray.get(worker.poll), None, now
            for event in events:
                worker.seen = event["seq"]
                self._take(worker, event)
        elif now - worker.heard_at > self._config.heartbeat_timeout_s:
            raise WorkerSilentError(f"{worker.name} has not answered for {self._config.heartbeat_timeout_s:g} s")

    def _no_room(self) -> str:
        free = ray.available_resources()
        return (
            f"a trainer with {self._config.resources} found no room within {self._config.pending_timeout_s:g} s; "
            f"free now are {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU of "
            f"{describe(nodes_of(ray.nodes()))}; wait for other jobs (`mos jobs ls`) or ask for less"
        )

    def _take(self, worker: _Worker, event: Event) -> None:
        run_id = event["run_id"]
        if event["event"] == "ready":
            worker.memory_bytes, worker.idle_since = event["memory_bytes"], time.monotonic()
        if "slots" in event:
            worker.step_seconds[event["slots"]] = event["slots_step_s"]
        if run_id not in worker.runs:
            return
        if event["event"] == "faulted":
            worker.runs.discard(run_id)
            self._decide(self._running.pop(run_id), FaultKind.SYSTEM, event["error"], event["exit_code"])
            return
        self._tell(run_id, event)
        if event["event"] in TERMINAL_EVENTS:
            worker.runs.discard(run_id)
            worker.idle_since = time.monotonic()
            del self._running[run_id]
            self.outcomes[run_id] = event

    def _bury(self, worker: _Worker, error: BaseException) -> None:
        """Give a worker up and decide for each of its runs."""
        ray.kill(worker.actor)
        del self._workers[worker.name]
        kind = classify(error)
        message = str(root_cause(error)).strip() or type(error).__name__
        lost = [self._running.pop(run_id) for run_id in sorted(worker.runs)]
        if worker.memory_bytes is None and (not isinstance(error, PendingTimeoutError) or not self._workers):
            lost += [self._queue.pop(run_id) for run_id, run in list(self._queue.items()) if run.group == worker.group]
        code = getattr(root_cause(error), "exit_code", WorkerLostError.exit_code)
        for run in lost:
            self._decide(run, kind, message.splitlines()[0], code)

    def _decide(self, run: _Run, kind: FaultKind, message: str, exit_code: int) -> None:
        run_id = run.request.run_id
        run.failures += 1
        decision = decide(kind, failures=run.failures, policy=self._config.retries)
        if decision.action is Action.RETRY and not run.cancelled:
            run.attempt, run.worker, run.not_before = run.attempt + 1, "", time.monotonic() + decision.wait_s
            self._queue[run_id] = run
            metrics.add("mos_retries_total", {"run": run_id})
            self._tell(run_id, {"event": "retrying", "reason": f"{message}; {decision.reason}", "attempt": run.attempt})
            return
        event: Event = {"event": "cancelled", "run_id": run_id, "attempt": run.attempt}
        if decision.action is not Action.RETRY or not run.cancelled:
            error = f"{run.request.ref}: {message}; {decision.reason}"
            event = {"event": "failed", "run_id": run_id, "error": error, "exit_code": exit_code}
        self.outcomes[run_id] = event
        self._tell(run_id, event)

    def _pass_on_cancellations(self) -> None:
        for run_id, run in list(self._queue.items()):
            if self._is_cancelled(run_id):
                del self._queue[run_id]
                self.outcomes[run_id] = {"event": "cancelled", "run_id": run_id, "attempt": run.attempt}
                self._tell(run_id, self.outcomes[run_id])
        for run_id, run in self._running.items():
            if not run.cancelled and self._is_cancelled(run_id):
                run.cancelled = True
                worker = self._workers[run.worker]
                worker.sent.append(worker.actor.cancel.remote(run_id))
                self._tell(run_id, {"event": "cancelling"})

    def _start_workers(self) -> None:
        limits = self._config.limits
        groups = Counter(run.group for run in self._queue.values())
        bases = {run.group: run.base for run in self._queue.values()}
        for group, waiting in sorted(groups.items()):
            free = sum(self._free_slots(worker) for worker in self._workers.values() if worker.group == group)
            while waiting > free and len(self._workers) < limits.max_workers:
                self._start_worker(group, bases[group])
                free += limits.slots_per_worker

    def _start_worker(self, group: str, base: str) -> None:
        number = next(self._numbers)
        name = f"trainer-{number}"
        actor = (
            ray.remote(TrainerWorker)
            .options(
                name=f"mos-{name}-{time.time_ns():x}",
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=4,
                **self._config.resources.options(),
            )
            .remote(name=name, base=base, open_place=self._open_place, resources=self._config.resources)
        )
        now = time.monotonic()
        self._workers[name] = _Worker(
            name=name,
            group=group,
            actor=actor,
            placed=actor.place.options(name=f"{name}: place").remote(),
            work=actor.work.options(name=f"{name}: train").remote(),
            started_at=now,
            heard_at=now,
            idle_since=now,
        )

    def _admit(self) -> None:
        now = time.monotonic()
        queue = [
            QueuedRun(
                run_id=run_id,
                owner=run.request.ref.owner,
                base=run.group,
                memory_bytes=run.request.memory_bytes,
            )
            for run_id, run in self._queue.items()
            if run.not_before <= now
        ]
        rooms = [self._room(worker) for worker in self._workers.values() if worker.memory_bytes is not None]
        held = Counter(run.request.ref.owner for run in self._running.values())
        for admission in admit(queue, rooms, held, self._config.limits, self._turns):
            self._turns[self._queue[admission.run_id].request.ref.owner] = next(self._admissions)
            run, worker = self._queue.pop(admission.run_id), self._workers[admission.worker]
            run.worker = worker.name
            worker.runs.add(admission.run_id)
            self._running[admission.run_id] = run
            worker.sent.append(worker.actor.admit.remote(run.request, run.attempt))
        for waiting in queue:
            self._refuse_if_too_large(waiting, rooms)

    def _room(self, worker: _Worker) -> WorkerRoom:
        assert worker.memory_bytes is not None
        taken = sum(self._running[run_id].request.memory_bytes for run_id in worker.runs)
        return WorkerRoom(
            name=worker.name,
            base=worker.group,
            free_slots=self._free_slots(worker),
            free_bytes=worker.memory_bytes - taken,
        )

    def _refuse_if_too_large(self, run: QueuedRun, rooms: Sequence[WorkerRoom]) -> None:
        """End a run that would not even fit alone into a worker of its kind, instead of letting it wait for ever."""
        largest = max(
            (self._workers[room.name].memory_bytes or 0 for room in rooms if room.base == run.base), default=None
        )
        if run.run_id in self._queue and largest is not None and run.memory_bytes > largest:
            message = (
                f"a slot of this training takes {run.memory_bytes / 2**30:.2f} GiB beside the base, and a trainer "
                f"with {self._config.resources} has {largest / 2**30:.2f} GiB left; ask for a smaller batch"
            )
            self._decide(self._queue.pop(run.run_id), FaultKind.USER, message, UnsatisfiableError.exit_code)

    def _free_slots(self, worker: _Worker) -> int:
        worth = slots_worth_filling(worker.step_seconds, self._config.limits.slots_per_worker)
        return max(0, worth - len(worker.runs))

    def _close_idle(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers.values()):
            is_wanted = any(run.group == worker.group for run in self._queue.values())
            if not worker.runs and not is_wanted and now - worker.idle_since >= self._config.idle_timeout_s:
                ray.kill(worker.actor)
                del self._workers[worker.name]

    def _tell(self, run_id: str, event: Event) -> None:
        self._on_event(run_id, {"run_id": run_id} | event)


def _is_ready(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def failed(outcomes: Mapping[str, Event]) -> Iterable[Event]:
    """The outcomes that are failures."""
    return (event for event in outcomes.values() if event["event"] == "failed")
