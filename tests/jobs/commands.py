"""The command line as a person's processes, in a home of its own, with everything it started known by a mark."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import keeper

ROOT = Path(__file__).parent.parent.parent


class Mos:
    """Runs `mos` commands; `left_behind` finds every process that descends from one."""

    def __init__(self, home: Path) -> None:
        self.home, self._mark = home, secrets.token_hex(8)
        self.temporary = tempfile.mkdtemp(prefix="mt-", dir="/tmp")  # short: Ray's sockets lie below it
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {
            "MOS_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "MOS_TEST_MARK": self._mark,
            "TMPDIR": self.temporary,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        done = subprocess.run(self._command(words), env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def data(self, *words: str | Path) -> Any:
        return json.loads(self(*words, "--json"))

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(words),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=as_from_a_terminal,
        )

    def runs(self) -> list[dict[str, Any]]:
        """The records of this home's runs, read from its files."""
        return [json.loads(path.read_text()) for path in sorted((self.home / "runs").glob("*/record.json"))]

    def events(self, run: str) -> list[dict[str, Any]]:
        path = self.home / "runs" / run / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def left_behind(self) -> list[int]:
        """Living processes that inherited the mark or keep files open below the temporary folder."""
        found = set(keeper.marked_processes("none", self.temporary))
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"MOS_TEST_MARK={self._mark}".encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
        return sorted(found)

    def _command(self, words: tuple[str | Path, ...]) -> list[str]:
        return [sys.executable, "-m", "jobs.cli", *map(str, words)]


def as_from_a_terminal() -> None:
    """Let Ctrl-C end the command also where a shell has started these tests in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(claim: Callable[[], Any], what: str, *, timeout_s: float = 900.0) -> Any:
    """Wait until the claim is true, and return what it returned."""
    deadline = time.monotonic() + timeout_s
    while not (found := claim()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.2)
    return found
