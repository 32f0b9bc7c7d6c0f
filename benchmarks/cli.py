"""What the command line costs before it does anything: CPU seconds of `mos --help` and of single commands' help."""

import os
import subprocess
import sys
from statistics import median

from benchmarks.results_file import Row, write_results

RUNS = 5
PEER = "import torch, diffusers, ray"


def cpu_seconds(arguments: list[str]) -> float:
    """Median user + system CPU seconds of running Python with `arguments`, over RUNS runs after one warm-up."""
    return median([_one_run(arguments) for _ in range(RUNS + 1)][1:])


def _one_run(arguments: list[str]) -> float:
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    """Measure and write benchmarks/results/cli.json."""
    how = f"median of {RUNS} runs, whole process"
    top = cpu_seconds(["-m", "jobs.cli", "--help"])
    rows = [Row(name="mos --help", value=top, unit="CPU s", goal="<= 0.5", how=how)]
    for command in ("submit", "fuse", "sample", "concept"):
        value = cpu_seconds(["-m", "jobs.cli", command, "--help"])
        rows.append(Row(name=f"mos {command} --help", value=value, unit="CPU s", goal="<= 1.0", how=how))
    heavy = cpu_seconds(["-c", PEER])
    rows.append(Row(name="mos --help / importing torch, diffusers and ray", value=top / heavy, unit="ratio", how=how))
    write_results("cli", rows)


if __name__ == "__main__":
    main()
