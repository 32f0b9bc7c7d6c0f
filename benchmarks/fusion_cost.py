"""What one call costs: CPU seconds of this process, and the most memory it held beyond what was there before."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU seconds, and megabytes at most beyond those held before; None where the system does not say."""

    cpu_s: float
    peak_mb: float | None


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Process CPU seconds of one call, and its result."""
    before = time.process_time()
    result = work()
    return time.process_time() - before, result


def cost_of(work: Callable[[], Any]) -> tuple[Cost, Any]:
    """The cost of one call, and its result.

    The system's high-water mark is set back first (writing 5 to clear_refs, proc(5)), so neither what ran before nor
    a parent's peak, which a child's `ru_maxrss` starts from, is counted.
    """
    before = reset_peak()
    seconds, result = cpu_seconds(work)
    peak = peak_mb()
    return Cost(cpu_s=seconds, peak_mb=None if before is None or peak is None else max(peak - before, 0.0)), result


def reset_peak() -> float | None:
    """Give freed memory back, set the high-water mark to what is held now, and return that in megabytes."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
    except (OSError, AttributeError):
        return None
    return _status_mb("VmRSS")


def peak_mb() -> float | None:
    """The most memory held since `reset_peak`, in megabytes."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float | None:
    if not STATUS.exists():
        return None
    lines = STATUS.read_text().splitlines()
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:")), None)
