"""Commands that are interrupted or killed leave no process behind; their work goes on from its checkpoint."""

import hashlib
import signal
from pathlib import Path

import pytest
from PIL import Image

from cluster.places import RegistryPlaces
from mos.base_model import load_base
from tests.bases import saved_random_base
from tests.jobs.commands import Mos, wait_until
from tests.mos.training.concepts import made_up_concept

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EVERY = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    saved_random_base(folder / "base")
    (folder / "photos").mkdir()
    for picture in made_up_concept("thing").pictures:
        Image.fromarray(picture.pixels).save(folder / "photos" / f"{picture.name}.png")
    return folder


def words(folder: Path, mos: Mos, steps: int) -> tuple[str | Path, ...]:
    given = ("submit", "concept", "--owner", "alice", "--name", "cat", "--class", "cat", "-o", f"steps={steps}")
    places = ("--pictures", folder / "photos", "--base", folder / "base", "--registry", mos.home / "registry")
    return (*given, *places, "--checkpoint-every", str(EVERY))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_concept_whose_command_ends_leaves_nothing_and_goes_on(
    number: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    mos, steps = Mos(tmp_path / "home"), 200
    mos("registry", "init", mos.home / "registry")
    with mos.start(*words(folder, mos, steps)) as process:
        (run,) = wait_until(lambda: [record["run_id"] for record in mos.runs()], "a run")
        wait_until(lambda: any(event["event"] == "checkpoint" for event in mos.events(run)), "a checkpoint")
        process.send_signal(number)
        shown, _ = process.communicate(timeout=120)
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number], shown
    wait_until(lambda: not mos.left_behind(), "no process is left", timeout_s=60)
    assert list(Path(mos.temporary).iterdir()) == []

    (listed,) = mos.data("jobs", "ls")
    assert listed["state"] == ("failed" if number is signal.SIGKILL else "cancelled")
    assert list(RegistryPlaces(str(mos.home / "registry"))(run).names("pictures")) == []
    done = mos.data("jobs", "retry", run)
    assert (done["state"], done["result"]) == ("done", "alice/cat@1")
    started = [event["step"] for event in mos.events(run) if event["event"] == "started"]
    assert started[0] == 0
    assert started[1] >= EVERY
    assert started[1] % EVERY == 0
    versions = list((mos.home / "registry" / "users" / "alice" / "m" / "cat").iterdir())
    assert [path.name for path in versions] == ["000001.json"]
    shown = mos.data("concept", "show", "alice/cat", "--registry", mos.home / "registry")
    weights = next(file["sha256"] for file in shown["files"] if file["role"] == "weights")
    assert weights == undisturbed(folder, steps)
    assert mos.left_behind() == []


def undisturbed(folder: Path, steps: int) -> str:
    from jobs.specs import ConceptSpec
    from jobs.train_concept import prepare
    from mos.artifact import artifact_bytes
    from mos.training import train_concept

    base = load_base(folder / "base")
    spec = ConceptSpec(
        owner="alice",
        name="cat",
        class_word="cat",
        pictures=str(folder / "photos"),
        base=str(folder / "base"),
        options={"steps": steps},
    )
    prepared = prepare(spec, base.facts)
    return hashlib.sha256(b"".join(artifact_bytes(train_concept(base, prepared.data, prepared.config)))).hexdigest()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_demo_whose_command_ends_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    mos, out = Mos(tmp_path / "home"), tmp_path / "demo"
    with mos.start("demo", "--out", out, "--pictures", "0") as process:
        events = wait_until(lambda: sorted(out.glob("home/runs/*/events.jsonl")), "runs")
        wait_until(lambda: any('"step"' in path.read_text() for path in events), "a step", timeout_s=900)
        assert len(mos.left_behind()) > 5
        process.send_signal(number)
        shown, _ = process.communicate(timeout=120)
        assert process.returncode == (130 if number is signal.SIGINT else -9), shown
    wait_until(lambda: not mos.left_behind(), "no process is left", timeout_s=60)
    assert list(Path(mos.temporary).iterdir()) == []
