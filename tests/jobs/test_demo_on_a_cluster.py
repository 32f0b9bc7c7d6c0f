"""The demo's job on a cluster that was started apart: the bits it gives on this machine alone."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.demo import IDENTITY_SEED, OWNERS
from tests.jobs.commands import Mos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

STEPS = 12
DEMO = f"""
import sys
from pathlib import Path
from jobs.demo import DemoConfig, run_demo
size = dict(training={{"steps": {STEPS}}}, pictures_per_concept=0, num_inference_steps=4)
run_demo(DemoConfig(out=Path(sys.argv[1]), ray_address=sys.argv[2] or None, **size), print)
"""


def run_demo(mos: Mos, out: Path, address: str = "") -> None:
    command = [sys.executable, "-c", DEMO, str(out), address]
    done = subprocess.run(command, env=mos.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def fused(folder: Path) -> bytes:
    return (folder / "fused.safetensors").read_bytes()


def weights(folder: Path) -> dict[str, str]:
    """Concept -> digest of the weights that were fused."""
    lock = json.loads((folder / "fused.lock.json").read_text())
    return {entry["ref"]: entry["weights_sha256"] for entry in lock["concepts"]}


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "pictures").glob("*.png"))}


@pytest.fixture(scope="module")
def mos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mos]:
    mos = Mos(tmp_path_factory.mktemp("demo") / "home")
    yield mos
    subprocess.run(mos._command(("cluster", "down")), env=mos.environment, check=False, capture_output=True)
    assert mos.left_behind() == []


def test_the_demo_and_its_commands_on_a_cluster_give_what_the_demo_gives_here(mos: Mos, tmp_path: Path) -> None:
    run_demo(mos, tmp_path / "here")
    here = tmp_path / "here" / "fused"
    address = str(mos.data("cluster", "up")["ray_address"])
    run_demo(mos, tmp_path / "there", address)
    assert len(weights(here)) == len(OWNERS)
    assert weights(tmp_path / "there" / "fused") == weights(here)
    assert fused(tmp_path / "there" / "fused") == fused(here)
    assert len(pictures(tmp_path / "here")) > len(OWNERS)
    assert pictures(tmp_path / "there") == pictures(tmp_path / "here")

    place = ("--registry", tmp_path / "registry", "--ray-address", address)
    mos("registry", "init", tmp_path / "registry")
    runs = []
    for owner, name, kind in OWNERS:
        words = ("--owner", owner, "--name", name, "--class", name, "--kind", kind, "--title", f"{owner}'s {name}")
        recipe = ("--seed", str(IDENTITY_SEED), "-o", f"steps={STEPS}")
        shown = ("--pictures", tmp_path / "here" / "owners" / owner / name)
        runs.append(mos.data("submit", "concept", *words, *recipe, *shown, *place, "--no-wait")["run"])
    assert [mos.data("jobs", "wait", run)["result"] for run in runs] == [f"{who}/{what}@1" for who, what, _ in OWNERS]
    names = [f"{owner}/{name}" for owner, name, _ in OWNERS]
    mos("submit", "fusion", *names, "--out", tmp_path / "sent", *place)
    assert weights(tmp_path / "sent") == weights(here)
    assert fused(tmp_path / "sent") == fused(here)
