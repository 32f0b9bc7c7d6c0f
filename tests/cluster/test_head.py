"""Starting Ray on a machine that is too busy for it: tried again, said aloud, and nothing left of a failure."""

import sys
from pathlib import Path

import pytest

from cluster import head
from cluster.errors import RayUnavailableError
from cluster.session import START_ATTEMPTS, started


def test_a_start_that_is_too_slow_is_tried_again_and_says_so_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    tries: list[str] = []

    def start() -> str:
        tries.append("start")
        if tries.count("start") < START_ATTEMPTS:
            raise RuntimeError("The current node timed out during startup. This could happen because of much else.")
        return "up"

    assert started(start, clean_up=lambda: tries.append("clean up")) == "up"
    assert tries == ["start", "clean up", "start", "clean up", "start"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"Ray did not start (The current node timed out during startup); trying again, attempt {number} of 3"
        for number in (2, 3)
    ]


def test_a_head_that_never_starts_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("MOS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    breaking = [sys.executable, "-S", "-c", "raise SystemExit('Exception: no room for a raylet')"]
    monkeypatch.setattr(head, "_command", lambda *_: breaking)
    with pytest.raises(RayUnavailableError, match="Ray did not start: no room for a raylet; `mos doctor` may say why"):
        head.start_head(num_cpus=2)
    assert capsys.readouterr().err.count("trying again") == START_ATTEMPTS - 1
    assert list((tmp_path / "temporary").iterdir()) == []
    assert head.find_head() is None
