"""Commands that are interrupted or killed leave no process behind; their work goes on from its checkpoint."""

import contextlib
import hashlib
import os
import re
import signal
from pathlib import Path

import pytest
from PIL import Image

from cluster.places import RegistryPlaces
from mos.artifact import write_artifact
from mos.base_model import load_base
from mos.random_concept import random_concept
from registry import Registry
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


def test_a_fusion_whose_worker_is_killed_is_published_once_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mos, names = Mos(tmp_path / "home"), ("alice/robot", "bob/cat", "carol/house")
    monkeypatch.setenv("MOS_HOME", str(mos.home))
    registry, base = Registry.open(mos.home / "registry", create=True), load_base(folder / "base")
    for seed, name in enumerate(names):
        source = random_concept(base, name, seed)
        write_artifact(source.edlora, tmp_path / "concept.safetensors")
        key = registry.new_owner(source.ref.owner)
        registry.publish(tmp_path / "concept.safetensors", source.ref, key=key, run_id=f"run-{seed}", licence="cc0-1.0")
    registry.index()
    places = ("--base", folder / "base", "--registry", mos.home / "registry", "--workers", "2")
    given = ("fuse", "--from-registry", *names, *places, "-o", "sampling_steps=8")

    with mos.start(*given, "--out", tmp_path / "killed", "--publish", "alice/group") as process:
        assert process.stdout is not None
        shown = ""
        while "recorded" not in shown:
            line = process.stdout.readline()
            assert line, shown
            shown += line
        os.kill(fusion_workers(mos)[0], signal.SIGKILL)
        rest, _ = process.communicate(timeout=900)
    assert process.returncode == 0, shown + rest
    assert "lost its worker" in rest
    versions = mos.home / "registry" / "users" / "alice" / "m" / "group"
    assert [path.name for path in versions.iterdir()] == ["000001.json"]
    wait_until(lambda: not mos.left_behind(), "no process is left", timeout_s=60)

    mos(*given, "--out", tmp_path / "undisturbed")
    undisturbed, killed = (tmp_path / name / "fused.safetensors" for name in ("undisturbed", "killed"))
    assert killed.read_bytes() == undisturbed.read_bytes()


def fusion_workers(mos: Mos) -> list[int]:
    """The processes of this command that record or solve, by what they show: their class, or the piece they are at."""
    found = []
    for process_id in mos.left_behind():
        with contextlib.suppress(OSError):
            if re.match(rb"ray::.*fusion", Path(f"/proc/{process_id}/cmdline").read_bytes(), re.IGNORECASE):
                found.append(process_id)
    return found
