"""What each phase of a job takes: wall seconds, CPU seconds and memory of this process and everything it started."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """One phase: wall and CPU seconds, and the largest resident memory of all processes together."""

    name: str
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int


class PhaseMeter:
    """Measures phases over a set of processes, sampled once a second from /proc (Linux; zero elsewhere).

    CPU of a process that lives less than a sample is partly missed; shared pages are counted once a process.

    Args:
        process_ids: Which processes to count now, this one not included.
        say: Called with a line at the start and the end of each phase.
    """

    def __init__(self, process_ids: Callable[[], list[int]], say: Callable[[str], None]) -> None:
        self._process_ids, self._say = process_ids, say
        self.costs: list[PhaseCost] = []
        self._cpu_by_process: dict[int, float] = {}
        self._peak = 0
        self._lock = threading.Lock()

    def watch(self, process_ids: Callable[[], list[int]]) -> None:
        """Count other processes from now on."""
        self._process_ids = process_ids

    @contextlib.contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        """Measure the block as one phase."""
        self._say(f"{name}: {text}")
        stop = threading.Event()
        self._sample()
        cpu_s, started, self._peak = self._cpu_s(), time.monotonic(), 0
        watcher = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._sample()
            stop.set()
            watcher.join()
            cost = PhaseCost(
                name=name,
                wall_s=time.monotonic() - started,
                cpu_s=self._cpu_s() - cpu_s,
                peak_memory_bytes=self._peak,
            )
            self.costs.append(cost)
            self._say(
                f"{name}: done in {cost.wall_s:.0f} s, {cost.cpu_s:.0f} CPU s, {cost.peak_memory_bytes / 1e9:.1f} GB"
            )

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(_SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            resident = 0
            for process_id in {os.getpid(), *self._process_ids()}:
                cpu_s, memory = _usage(process_id)
                resident += memory
                self._cpu_by_process[process_id] = max(cpu_s, self._cpu_by_process.get(process_id, 0.0))
            self._peak = max(self._peak, resident)

    def _cpu_s(self) -> float:
        return sum(self._cpu_by_process.values())


def _usage(process_id: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of a process; zeros if it is gone."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / _TICK, int(fields[21]) * _PAGE


def total(costs: list[PhaseCost]) -> PhaseCost:
    """All phases together."""
    return PhaseCost(
        name="all",
        wall_s=sum(cost.wall_s for cost in costs),
        cpu_s=sum(cost.cpu_s for cost in costs),
        peak_memory_bytes=max((cost.peak_memory_bytes for cost in costs), default=0),
    )
