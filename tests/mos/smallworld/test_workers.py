"""Workers of pretraining: they average, and none outlives whoever started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from mos.smallworld.workers import average_, run_workers


def share_and_wait(rank: int, num_workers: int, folder: str, seconds: float) -> None:
    """Average the ranks with the others, say so in a file named after this process, and wait."""
    value = torch.tensor([float(rank)])
    average_([value])
    assert value.item() == (num_workers - 1) / 2
    Path(folder, str(os.getpid())).write_text(str(rank))
    time.sleep(seconds)


def test_workers_average_and_end_with_a_killed_parent(tmp_path):
    script = (
        f"from tests.mos.smallworld.test_workers import *\nrun_workers(share_and_wait, 2, {str(tmp_path)!r}, 600.0)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        until(lambda: len(list(tmp_path.iterdir())) == 2)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not any(is_alive(int(path.name)) for path in tmp_path.iterdir()))


def test_one_worker_needs_no_process(tmp_path):
    run_workers(share_and_wait, 1, str(tmp_path), 0.0)
    assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]


def until(claim) -> None:
    deadline = time.monotonic() + 120
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process_id: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
