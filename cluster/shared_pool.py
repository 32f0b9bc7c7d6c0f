"""One pool of trainers for all owners of a cluster, so that their runs share bases, slots and turns.

Every concept job of a cluster hands its run to the same named actor, which is there while anybody needs it.
The actor belongs to no job: a job that ends takes nobody's training with it. Instead each run has a lease: its
driver's questions renew it, and a run nobody asks about any more is cancelled with its checkpoint written. When
the last run is gone the pool ends itself and its trainers. When the pool dies, each driver brings its run to a new
one, where it goes on from its last checkpoint.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.failure import Action, RetryPolicy, classify, decide, root_cause
from cluster.placement import TRAINER, gpu_trainer, nodes_of, share_of_gpu
from cluster.places import RegistryPlaces
from cluster.slots import Limits
from cluster.supervisor import TERMINAL_EVENTS, Event, PoolConfig, Supervisor
from cluster.trainer import TrainingRequest
from mos.errors import BadInputError, MosError, TryAgainError

_ASK_S = 0.3
_FIRST_RUN_S = 120.0
"""How long a new pool waits for its first run: reading that imports torch, which takes a while on a busy machine."""
_ANSWER_LIMIT_S = 300.0
"""How long a pool that lives may take to answer: its first run makes it import torch, for minutes on a busy machine."""


@dataclass
class _Entry:
    request: TrainingRequest
    base: str
    asked_at: float
    events: list[Event] = field(default_factory=list)
    is_cancelled: bool = False
    is_over: bool = False


class SharedPool:
    """The body of the pool's actor: a supervisor in a thread, and a counter where drivers hand in and ask.

    Args:
        registry_url: Where the runs' private places are.
        config: Limits, resources, and how long the lease of a run is.
    """

    def __init__(self, *, registry_url: str, config: PoolConfig) -> None:
        self._lease_s = config.lease_s
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        self._arrived: list[_Entry] = []
        self._started_at, self._has_served = time.monotonic(), False
        self._supervisor = Supervisor(
            RegistryPlaces(registry_url), config, on_event=self._hear, is_cancelled=self._is_cancelled
        )
        threading.Thread(target=self._work, daemon=True).start()

    def place(self) -> int:
        """Answer with the process id."""
        return os.getpid()

    def join(self, request: TrainingRequest, base: str) -> None:
        """Hand in a run; one that is here already goes on as it is, one that has ended begins anew."""
        with self._lock:
            entry = self._entries.get(request.run_id)
            if entry is not None and not entry.is_over and not entry.is_cancelled:
                entry.asked_at = time.monotonic()
                return
            if entry is None or entry.is_over:
                entry = _Entry(request=request, base=base, asked_at=time.monotonic())
                self._entries[request.run_id], self._has_served = entry, True
                self._arrived.append(entry)

    def events(self, run_id: str, after: int) -> list[Event]:
        """The run's events after the first `after`; asking renews its lease."""
        with self._lock:
            entry = self._entries.get(run_id)
            if entry is None:
                raise TryAgainError(f"{run_id}: its lease ran out; it joins again")
            entry.asked_at = time.monotonic()
            return entry.events[after:]

    def cancel(self, run_id: str) -> None:
        """Stop a run, its checkpoint written."""
        with self._lock:
            if run_id in self._entries:
                self._entries[run_id].is_cancelled = True

    def trainers(self) -> dict[str, int]:
        """Trainer name -> process id."""
        with self._lock:
            return self._supervisor.worker_pids()

    def _work(self) -> None:
        try:
            while not self._is_deserted():
                with self._lock:
                    arrived, self._arrived = self._arrived, []
                    for entry in arrived:
                        self._take(entry)
                    self._end_forgotten()
                    self._supervisor.tick()
                time.sleep(0.1)
        finally:  # also after an error: drivers then notice and bring their runs to a new pool
            self._supervisor.close()
            ray.kill(ray.get_runtime_context().current_actor)

    def _take(self, entry: _Entry) -> None:
        try:
            self._supervisor.enqueue(entry.request, entry.base)
        except MosError as error:
            run_id = entry.request.run_id
            self._hear(
                run_id,
                {"run_id": run_id, "event": "failed", "error": str(error), "exit_code": error.exit_code},
            )

    def _hear(self, run_id: str, event: Event) -> None:
        with self._lock:
            entry = self._entries[run_id]
            entry.events.append(event)
            entry.is_over = event["event"] in TERMINAL_EVENTS

    def _is_cancelled(self, run_id: str) -> bool:
        return self._entries[run_id].is_cancelled

    def _end_forgotten(self) -> None:
        now = time.monotonic()
        for run_id, entry in list(self._entries.items()):
            if now - entry.asked_at > self._lease_s:
                if entry.is_over:
                    del self._entries[run_id]
                entry.is_cancelled = True

    def _is_deserted(self) -> bool:
        with self._lock:
            waited_s = time.monotonic() - self._started_at
            return not self._entries and (self._has_served or waited_s > _FIRST_RUN_S)


def train_in_shared_pool(
    request: TrainingRequest,
    registry_url: str,
    base: str,
    *,
    is_cancelled: Callable[[str], bool],
    on_event: Callable[[str, Event], None],
    config: PoolConfig | None = None,
    retries: RetryPolicy | None = None,
) -> Event:
    """Bring one staged run through training in the cluster's pool; returns its last event.

    Args:
        request: The run.
        registry_url: Registry that holds its private place; there is one pool a registry.
        base: What its trainer loads.
        is_cancelled: Asked again and again whether to stop.
        on_event: Called with every event, in order.
        config: How the pool is run, if this call is the one that starts it; default `shared_config`.
        retries: What happens when the pool itself is lost.
    """
    policy, failures = retries or RetryPolicy(), 0
    config = config or shared_config(nodes_of(ray.nodes()))
    while True:
        try:
            return _follow(request, registry_url, base, config, is_cancelled, on_event)
        except Exception as error:
            failures += 1
            decision = decide(classify(error), failures=failures, policy=policy)
            if decision.action is not Action.RETRY:
                raise root_cause(error) from None
            message = f"the pool of trainers is gone or does not answer; {decision.reason}"
            on_event(request.run_id, {"run_id": request.run_id, "event": "retrying", "reason": message})
            time.sleep(decision.wait_s)


def _follow(
    request: TrainingRequest,
    registry_url: str,
    base: str,
    config: PoolConfig,
    is_cancelled: Callable[[str], bool],
    on_event: Callable[[str, Event], None],
) -> Event:
    run_id, has_asked, seen = request.run_id, False, 0
    pool = open_pool(registry_url, config)
    ray.get(pool.join.remote(request, base), timeout=_ANSWER_LIMIT_S)
    while True:
        if not has_asked and is_cancelled(run_id):
            ray.get(pool.cancel.remote(run_id), timeout=_ANSWER_LIMIT_S)
            has_asked = True
        arrived: list[Event] = ray.get(pool.events.remote(run_id, seen), timeout=_ANSWER_LIMIT_S)
        for event in arrived:
            seen += 1
            if event["event"] == "cancelled" and not is_cancelled(run_id):
                return _follow(request, registry_url, base, config, is_cancelled, on_event)  # an old lease ran out
            on_event(run_id, event)
            if event["event"] in TERMINAL_EVENTS:
                return event
        time.sleep(_ASK_S)


def open_pool(registry_url: str, config: PoolConfig) -> Any:
    """The pool of the connected cluster for runs in this registry; started if there is none."""
    name = "mos-trainers-" + hashlib.sha256(registry_url.encode()).hexdigest()[:8]
    return (
        ray.remote(SharedPool)
        .options(
            name=name,
            namespace="mos",
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            num_gpus=0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=16,
        )
        .remote(registry_url=registry_url, config=config)
    )


def shared_config(nodes: Sequence[Mapping[str, float]]) -> PoolConfig:
    """How a cluster's pool is run: by its machines, and by what its keeper has set in its environment.

    With GPUs a trainer takes one and up to eight runs share its base; without, every run has a trainer with half
    a CPU of its own. MOS_SLOTS_PER_TRAINER, MOS_MAX_TRAINERS and MOS_SLOTS_PER_OWNER bound slots, trainers and
    what one owner may hold at once; MOS_TRAINER_GPUS says what share of a GPU a trainer takes, also while a
    cluster that grows has none yet.

    Args:
        nodes: Total resources of each node.
    """
    gpus, cpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("GPU", "CPU"))
    share = share_of_gpu("MOS_TRAINER_GPUS", 1.0 if gpus else 0.0)
    resources = gpu_trainer(share) if share else TRAINER
    trainers = max(1, int(gpus / share)) if share else max(1, int(cpus / TRAINER.num_cpus) - 1)
    limits = Limits(
        slots_per_worker=_setting("MOS_SLOTS_PER_TRAINER", 8 if share else 1),
        max_workers=_setting("MOS_MAX_TRAINERS", trainers),
        max_slots_per_owner=_setting("MOS_SLOTS_PER_OWNER", 0),
    )
    return PoolConfig(limits=limits, resources=resources)


def _setting(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise BadInputError(f"{name}={text}: expected a whole number; set it where the cluster is started")
    return int(text)
