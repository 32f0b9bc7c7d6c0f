"""Who worked when: one interval a piece of work, measured where it was done."""

import contextlib
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, kw_only=True)
class WorkInterval:
    """One process at one piece of work.

    Attributes:
        role: "trainer", "recorder", "solver", "evaluator" or "driver".
        label: What it worked on, such as `alice/robot` or `text_encoder bin 1`.
        actor: Name of the actor, empty for none.
        host: Name of the machine.
        process_id: Of the worker, on that machine.
        started_at: Unix time in seconds.
        ended_at: Unix time in seconds.
        cpu_s: CPU seconds of the process in between.
        peak_rss_bytes: Largest memory of the process so far.
    """

    role: str
    label: str
    actor: str
    host: str
    process_id: int
    started_at: float
    ended_at: float
    cpu_s: float
    peak_rss_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The interval as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        return cls(**data)


class Stopwatch:
    """Measures one interval from its making to `stop`."""

    def __init__(self, role: str, label: str, actor: str = "") -> None:
        self._role, self._label, self._actor = role, label, actor
        self._started_at, self._cpu_s = time.time(), process_cpu_s()

    def stop(self) -> WorkInterval:
        """The interval up to now; may be asked for several times."""
        return WorkInterval(
            role=self._role,
            label=self._label,
            actor=self._actor,
            host=socket.gethostname(),
            process_id=os.getpid(),
            started_at=self._started_at,
            ended_at=time.time(),
            cpu_s=process_cpu_s() - self._cpu_s,
            peak_rss_bytes=peak_rss_bytes(),
        )


@contextlib.contextmanager
def measured(into: list[WorkInterval], role: str, label: str, actor: str = "") -> Iterator[None]:
    """Append the interval of the block to `into`, also when the block fails."""
    watch = Stopwatch(role, label, actor)
    try:
        yield
    finally:
        into.append(watch.stop())


def process_cpu_s() -> float:
    """CPU seconds of this process, all its threads together."""
    return time.process_time()


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def most_at_once(intervals: Sequence[WorkInterval]) -> int:
    """The largest number of different processes that worked at the same moment."""
    moments = sorted({interval.started_at for interval in intervals})
    return max((len(_working_at(intervals, moment)) for moment in moments), default=0)


def _working_at(intervals: Sequence[WorkInterval], moment: float) -> set[tuple[str, int]]:
    return {
        (interval.host, interval.process_id)
        for interval in intervals
        if interval.started_at <= moment < interval.ended_at
    }


def num_processes(intervals: Sequence[WorkInterval]) -> int:
    """How many different processes the intervals come from."""
    return len({(interval.host, interval.process_id) for interval in intervals})
