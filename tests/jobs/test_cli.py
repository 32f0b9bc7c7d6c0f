"""The command line: its help, its errors, its exit codes."""

import errno
import json
import subprocess
import sys

import click
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


HEAVY = ("torch", "diffusers", "transformers", "ray", "pyarrow", "boto3", "numpy", "PIL")
HELP_THEN_MODULES = """
import json, sys
from jobs import cli
cli.cli.main(["--help"], standalone_mode=False)
print(json.dumps(sorted(sys.modules)))
"""


def test_help_shows_the_main_job_and_loads_nothing_heavy() -> None:
    command = [sys.executable, "-c", HELP_THEN_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *text, modules = done.stdout.splitlines()
    assert any("mos fuse --from-registry alice/robot bob/cat carol/house" in line for line in text)
    assert all(any(line.strip().startswith(name) for line in text) for name in cli.COMMANDS)
    assert not set(HEAVY) & set(json.loads(modules))


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_of_the_table_exists(name: str) -> None:
    command = cli.LazyGroup().get_command(click.Context(cli.cli), name)
    assert isinstance(command, click.Command)
    assert command.help


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


def test_a_full_disk_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli.cli, "main", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 8  # as where it is a registry's disk
    assert "the disk is full" in capsys.readouterr().err


def test_errors_survive_the_journey_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(errors.ConflictError("taken")))
    assert isinstance(error, MosError)
    assert str(error) == "taken"
