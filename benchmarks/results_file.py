"""The one format of benchmark results: rows with a goal and whether it holds, as JSON and as a table."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure.

    Attributes:
        name: What was measured, with its case: "3 regions / plain".
        value: The figure; None where this machine cannot measure it.
        unit: "ratio", "CPU s", "MB", ...
        goal: The bound as text, such as ">= 1.8" or "<= 0.2"; empty where there is none.
        how: The command or conditions behind it, for a reader who wants to see it again.
    """

    name: str
    value: float | None
    unit: str
    goal: str = ""
    how: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether value meets goal; None without a goal or without a value."""
        if not self.goal or self.value is None:
            return None
        sign, bound = self.goal.split()
        compare: dict[str, Callable[[float, float], bool]] = {
            ">=": float.__ge__,
            "<=": float.__le__,
            "==": float.__eq__,
        }
        return compare[sign](float(self.value), float(bound))


def machine() -> str:
    """Name this machine's processor, its core count, and its GPU where there is one."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores{_gpu()}"


def _gpu() -> str:
    import torch

    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def commit() -> str:
    """Name the commit the figures were measured at."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def write_results(name: str, rows: Sequence[Row]) -> Path:
    """Print `rows` as a table and write benchmarks/results/NAME.json."""
    print_table(rows)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "rows": [asdict(row) | {"holds": row.holds} for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {path}")
    return path


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a row: name, value, unit, goal, and whether it holds."""
    width = max((len(row.name) for row in rows), default=4)
    verdicts = {True: "holds", False: "FALLS SHORT", None: ""}
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value:.4g}"
        print(f"{row.name:<{width}}  {value:>12} {row.unit:<10} {row.goal:<10} {verdicts[row.holds]}")
