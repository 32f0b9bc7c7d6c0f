"""`mos cluster` and submission to it: the whole way of a run whose driver works elsewhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.places import RegistryPlaces
from tests.bases import saved_random_base
from tests.mos.training.concepts import made_up_concept

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Mos:
    """The command line in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.environment = os.environ | {"MOS_HOME": str(home), "PYTHONPATH": str(ROOT)}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{self.environment['PATH']}"

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        command = [sys.executable, "-m", "jobs.cli", *map(str, words)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def data(self, *words: str | Path) -> dict[str, object]:
        return dict(json.loads(self(*words, "--json")))


@pytest.fixture(scope="module")
def mos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mos]:
    mos = Mos(tmp_path_factory.mktemp("home"))
    yield mos
    subprocess.run([sys.executable, "-m", "jobs.cli", "cluster", "down"], env=mos.environment, check=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for picture in made_up_concept("thing").pictures:
        Image.fromarray(picture.pixels).save(folder / f"{picture.name}.png")
    return folder


def test_a_cluster_trains_what_a_private_ray_trains_and_its_owner_publishes_it(
    mos: Mos, photos: Path, tmp_path: Path
) -> None:
    base = saved_random_base(tmp_path / "base")
    common = ("--class", "cat", "--pictures", photos, "--base", base, "-o", "steps=8", "--owner", "alice")
    registry = ("--registry", tmp_path / "registry")
    mos("registry", "init", tmp_path / "registry")
    here = mos.data("submit", "concept", "--name", "here", *common, *registry)
    assert here["state"] == "done"

    head = mos.data("cluster", "up")
    address = str(head["ray_address"])
    assert address.startswith("http://127.0.0.1:")
    mos("cluster", "up", code=5)
    assert mos.data("cluster", "status")["running"] is True

    words = ("submit", "concept", "--name", "there", *common, *registry, "--ray-address", address)
    sent = mos.data(*words, "--no-wait")
    assert sent["state"] in ("queued", "running")
    done = mos.data("jobs", "wait", str(sent["run"]))
    assert done["result"] == "alice/there@1"
    again = mos.data(*words)
    assert again["result"] == "alice/there@1"
    assert "nothing was trained" in str(again["note"])

    place = RegistryPlaces(str(tmp_path / "registry"))(str(sent["run"]))
    assert list(place.names("pictures")) == []
    lines = mos("jobs", "logs", str(sent["run"])).splitlines()
    assert any("training on process" in line for line in lines)

    mos("cluster", "down")
    assert mos.data("cluster", "status")["running"] is False
    mos("cluster", "down", code=4)
    assert mos.data("concept", "show", "alice/there", *registry)
