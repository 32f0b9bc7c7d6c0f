"""`mos doctor`: names what is missing, with the command that mends it, also where much is missing at once."""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from tests.bases import saved_random_base


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_random_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def findings(*words: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["doctor", *map(str, words), "--json"])
    found = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert result.exit_code == (7 if any(finding["is_good"] is False for finding in found.values()) else 0)
    return found


def test_a_registry_that_is_missing_is_named_with_its_remedy_until_it_is_there(base_path: Path, tmp_path: Path) -> None:
    words = ("--base", base_path, "--registry", tmp_path / "shelf")
    missing = findings(*words)
    assert missing["registry"]["is_good"] is False
    assert missing["registry"]["remedy"] == f"mos registry init --registry {tmp_path / 'shelf'}"
    assert missing["base"]["is_good"]
    assert CliRunner().invoke(cli, ["registry", "init", str(tmp_path / "shelf")]).exit_code == 0
    assert findings(*words)["registry"]["is_good"]


def test_a_base_and_a_cluster_that_are_not_there_are_named(tmp_path: Path) -> None:
    words = ("--base", tmp_path / "nothing", "--registry", tmp_path, "--ray-address", "http://127.0.0.1:9")
    found = findings(*words)
    assert "nothing" in found["base"]["found"]
    assert "127.0.0.1:9" in found["ray"]["found"]
    assert found["ray"]["remedy"] == "mos cluster up"


def test_a_missing_package_is_named_and_what_needs_it_does_not_end_the_examination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_torch)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = findings("--registry", tmp_path)
    assert (found["torch"]["found"], found["torch"]["remedy"]) == ("not installed", "make setup")
    assert found["gpu"]["remedy"] == "make setup"
    assert found["python"]["is_good"]
    assert found["ray"]["is_good"] is None
