"""kill -9 between and inside all steps of publishing, indexing and deleting, in real processes on a real disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1800)  # a hundred and more trials, each of two processes: half a minute, if nothing else runs
@pytest.mark.parametrize(("action", "at_least"), [("publish", 30), ("index", 20), ("delete", 10)])
def test_killed_at_any_file_operation_nothing_is_half_visible_and_a_retry_converges(
    tmp_path: Path, action: str, at_least: int
):
    done = subprocess.run(
        [sys.executable, "-m", "tests.registry.victim", str(tmp_path), action],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["wrong"] == [], done.stderr
    assert outcome["num_killed"] >= at_least
