"""The command line: its help, its errors, its exit codes."""

import os
import subprocess
import sys

import pytest

from jobs import cli
from mos import errors
from mos.errors import MosError

EXIT_CODES = {
    "UsageError": 2,
    "BadInputError": 3,
    "NotFoundError": 4,
    "ConflictError": 5,
    "NotAllowedError": 6,
    "CheckFailedError": 7,
    "TryAgainError": 8,
    "JobFailedError": 9,
}


def test_help_shows_the_main_job_and_costs_under_half_a_cpu_second() -> None:
    before = os.times()
    done = subprocess.run([sys.executable, "-m", "jobs.cli", "--help"], capture_output=True, text=True, check=True)
    after = os.times()
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    assert "mos fuse --from-registry alice/robot bob/cat carol/house" in done.stdout
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert cpu_s < 0.5


def test_every_error_has_the_documented_exit_code() -> None:
    found = {name: getattr(errors, name).exit_code for name in EXIT_CODES}
    assert found == EXIT_CODES


def test_an_error_is_one_line_on_stderr_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise errors.NotFoundError("alice/cat: not in the registry")

    monkeypatch.setattr(cli.cli, "main", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 4
    assert capsys.readouterr().err == "mos: alice/cat: not in the registry\n"


def test_errors_survive_the_journey_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(errors.ConflictError("taken")))
    assert isinstance(error, MosError)
    assert str(error) == "taken"
