"""A few equal actors that work through calls of pure methods; a lost actor costs only the call it was at."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.errors import WorkerLostError
from cluster.failure import Action, FaultKind, RetryPolicy, classify, decide, root_cause
from cluster.placement import Resources, check_satisfiable, nodes_of, pending_timeout_s, wait_until_placed


@dataclass(frozen=True)
class Call:
    """One call: a method of the actor, its arguments, and a name for Ray's dashboard.

    Large arguments are best given as object references (`ray.put`), which a repetition reuses.
    """

    method: str
    arguments: tuple[Any, ...]
    label: str


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How a pool is run.

    Attributes:
        num_workers: Actors at once.
        resources: What each asks for.
        retries: What happens to a call whose actor is lost.
        pending_timeout_s: How long the actors may wait for room.
    """

    num_workers: int = 2
    resources: Resources = field(default_factory=lambda: Resources(num_cpus=0.5))
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    pending_timeout_s: float = field(default_factory=pending_timeout_s)


class WorkerPool:
    """Keeps `num_workers` actors of one class and hands out calls to whoever is free.

    Args:
        role: Name in the dashboard and in messages.
        worker: The class; its methods must be pure and it must have `place()`, which answers at once.
        arguments: Of its constructor.
        options: Size, resources, retries.
        on_retry: Called with a sentence when a call is repeated.

    Raises:
        UnsatisfiableError: If no node could ever hold one of them.
        PendingTimeoutError: If they find no room in time.
    """

    def __init__(
        self,
        role: str,
        worker: type,
        arguments: dict[str, Any],
        options: PoolOptions,
        *,
        on_retry: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._role, self._worker, self._arguments = role, worker, arguments
        self._options, self._on_retry = options, on_retry
        check_satisfiable(role, options.resources, nodes_of(ray.nodes()))
        self._number = 0
        self._actors = [self._start() for _ in range(options.num_workers)]
        answers = [actor.place.remote() for actor in self._actors]
        try:
            wait_until_placed(role, options.resources, answers, timeout_s=options.pending_timeout_s)
        except BaseException:
            self.close()
            raise

    def process_ids(self) -> list[int]:
        """Process ids of the actors."""
        return [int(pid) for pid in ray.get([actor.place.remote() for actor in self._actors])]

    def map(self, calls: Sequence[Call], on_result: Callable[[Call, Any], None] = lambda *_: None) -> list[Any]:
        """Make every call once, in order, as actors become free.

        Args:
            calls: What to do; longest first ends soonest.
            on_result: Called with each call and its result as it arrives.

        Returns:
            The results in the order of the calls.

        Raises:
            WorkerLostError: If one call lost its actor more often than the policy allows.
        """
        waiting = deque(range(len(calls)))
        results: dict[int, Any] = {}
        failures = [0] * len(calls)
        free = list(range(len(self._actors)))
        running: dict[Any, tuple[int, int]] = {}
        while len(results) < len(calls):
            while waiting and free:
                index, actor = waiting.popleft(), free.pop(0)
                running[self._send(calls[index], actor)] = (index, actor)
            done, _ = ray.wait(list(running), num_returns=1)
            index, actor = running.pop(done[0])
            free.append(actor)
            try:
                results[index] = ray.get(done[0])
            except Exception as error:  # judged in one place, for every kind of failure
                failures[index] += 1
                self._judge(error, calls[index], failures[index], actor)
                waiting.appendleft(index)
            else:
                on_result(calls[index], results[index])
        return [results[index] for index in range(len(calls))]

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Any:
        self._number += 1
        name = f"mos-{self._role}-{self._number}"
        actor = ray.remote(self._worker).options(
            name=f"{name}-{time.time_ns():x}", max_restarts=0, max_task_retries=0, **self._options.resources.options()
        )
        return actor.remote(name=name.removeprefix("mos-"), **self._arguments)

    def _send(self, call: Call, actor: int) -> Any:
        method = getattr(self._actors[actor], call.method)
        return method.options(name=f"{self._role}: {call.label}").remote(*call.arguments)

    def _judge(self, error: Exception, call: Call, failures: int, actor: int) -> None:
        kind = classify(error)
        decision = decide(kind, failures=failures, policy=self._options.retries)
        if decision.action is not Action.RETRY:
            if kind is FaultKind.SYSTEM:
                raise WorkerLostError(f"{self._role}: {call.label} lost its worker; {decision.reason}") from error
            raise root_cause(error)
        self._on_retry(f"{self._role}: {call.label} lost its worker; {decision.reason}")
        time.sleep(decision.wait_s)
        ray.kill(self._actors[actor])
        self._actors[actor] = self._start()
