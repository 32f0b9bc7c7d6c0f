"""Lost nodes and lost messages: the same training and the same fusion as on a quiet machine, nothing left behind."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mos.base_model import load_base
from tests.bases import saved_random_base
from tests.cluster.work import fused_sha256, fusion_sources, published_versions, undisturbed_artifact

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_random_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def expected(base_path: Path) -> dict[str, str]:
    base = load_base(base_path)
    return {
        "trained": hashlib.sha256(undisturbed_artifact(base, "alice")).hexdigest(),
        "fused": fused_sha256(base, fusion_sources(base)),
    }


def disturbed(scenario: str, base_path: Path, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.cluster.disturbed", scenario, str(base_path), str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    assert found["trained"]["outcome"]["event"] == "staged", found
    return found


@pytest.mark.parametrize(("scenario", "least_retries"), [("node", 1), ("calls", 0)])
def test_what_is_lost_is_done_again_with_the_same_result(
    scenario: str, least_retries: int, base_path: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "registry").mkdir()
    found = disturbed(scenario, base_path, tmp_path / "registry")
    assert {name: found[name]["sha256"] for name in ("trained", "fused")} == expected
    assert found["trained"]["retries"] >= least_retries
    assert found["fused"]["retries"] >= least_retries
    assert published_versions(str(tmp_path / "registry"), tmp_path / "home") == ["000001.json"]
    assert found["actors"] == []
    assert found["returned_after_s"] < 60
    assert (found["lost_messages"] > 0) == (scenario == "calls")
