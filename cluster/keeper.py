"""Ends the processes of one private Ray when its owner ends, even if the owner was killed.

Every process of a private Ray inherits the environment variable MOS_RAY_SESSION with a random value and
keeps its logs and sockets open in one random folder (Ray's agents overwrite their environment with their
title, so the variable alone misses them). "Ours" is exact: nothing is ever stopped by its name. `local_ray`
sweeps by itself; this file, run as a process of its own with only the standard library, does it when the
owner could not. Linux only (/proc); elsewhere Ray's own ties between parent and child are all there is.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "MOS_RAY_SESSION"
_GRACE_S = 2.0
_LIMIT_S = 15.0


def marked_processes(mark: str, temp_dir: str) -> list[int]:
    """The ids of the processes that carry `mark` or hold files in `temp_dir` open, ascending.

    This process and its parent are left out.
    """
    spared = {os.getpid(), os.getppid()}
    folders = [folder for folder in Path("/proc").glob("[0-9]*") if int(folder.name) not in spared]
    return sorted(int(folder.name) for folder in folders if _belongs(folder, mark, temp_dir))


def _belongs(folder: Path, mark: str, temp_dir: str) -> bool:
    with contextlib.suppress(OSError):
        if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
            return True
    with contextlib.suppress(OSError):
        return any(_link(entry).startswith(temp_dir + "/") for entry in (folder / "fd").iterdir())
    return False


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""


def end_processes(mark: str, temp_dir: str, *, grace_s: float = _GRACE_S) -> int:
    """End every process of the session, politely first; returns how many there were at the start."""
    first = marked_processes(mark, temp_dir)
    started = time.monotonic()
    left = first
    while left and time.monotonic() - started < _LIMIT_S:
        polite = time.monotonic() - started < grace_s
        for process_id in left:
            _send(process_id, signal.SIGTERM if polite else signal.SIGKILL)
        time.sleep(0.1)
        left = marked_processes(mark, temp_dir)
    return len(first)


def _send(process_id: int, number: int) -> None:
    try:
        os.kill(process_id, number)
    except (ProcessLookupError, PermissionError):
        return


def main() -> None:
    """Wait until the owner closes stdin; unless it said "done" first, end what it left behind."""
    mark, temp_dir = sys.argv[1], sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.stdin.read() == "done":
        return
    end_processes(mark, temp_dir, grace_s=0.5)
    shutil.rmtree(temp_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
