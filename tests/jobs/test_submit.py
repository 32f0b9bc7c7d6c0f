"""`mos submit concept`: what is checked before anything runs, and what a dry run says."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jobs.cli import cli
from jobs.estimates import training_tflop
from jobs.specs import ConceptSpec
from jobs.train_concept import PreparedConcept, expectation
from mos.dry_run import dry_run
from mos.errors import BadInputError, MosError, NotFoundError, UsageError
from mos.random_base import random_base
from mos.training import PRESETS
from tests.bases import saved_random_base
from tests.mos.training.concepts import made_up_concept


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_random_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for picture in made_up_concept("robot").pictures:
        Image.fromarray(picture.pixels).save(folder / f"{picture.name}.png")
        (folder / f"{picture.name}.txt").write_text(picture.caption)
    return folder


def submit(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["submit", "concept", *map(str, words)])


def test_a_dry_run_prints_resources_estimates_bytes_and_digests(base_path: Path, photos: Path, tmp_path: Path) -> None:
    words = ("--owner", "alice", "--name", "robot", "--class", "cat", "--pictures", photos, "--base", base_path)
    registry = tmp_path / "registry"
    result = submit(*words, "--registry", registry, "--dry-run", "--json", "-o", "steps=7")
    plan = json.loads(result.stdout)
    assert (plan["steps"], plan["pictures"], plan["word"]) == (7, 4, "<alice-robot>")
    assert plan["run"].startswith("concept-alice-robot-")
    assert plan["resources"] == "0.5 CPU"
    assert plan["estimate"]["gpu_minutes"] >= 0
    assert len(plan["spec_sha256"]) == len(plan["pictures_sha256"]) == 64
    assert not registry.exists()


def test_three_seeds_are_another_run_and_three_times_the_work(base_path: Path, photos: Path, tmp_path: Path) -> None:
    words = ("--owner", "alice", "--name", "robot", "--class", "cat", "--pictures", photos, "--base", base_path)
    plan = (*words, "--dry-run", "--json", "-o", "steps=70000")
    one, looked_at = submit(*plan), submit(*plan, "--grids", tmp_path / "look", "--grid-at", 5)
    three = json.loads(submit(*plan, "--seeds", 3, "--keep", "best").stdout)
    assert three["seeds"] == 3
    assert three["run"] != json.loads(one.stdout)["run"]
    assert three["estimate"]["tflop"] == pytest.approx(3 * json.loads(one.stdout)["estimate"]["tflop"], rel=0.05)
    assert json.loads(looked_at.stdout) == json.loads(one.stdout)
    late = submit(*words, "--dry-run", "-o", "steps=7", "--grids", tmp_path / "look", "--grid-at", 8)
    assert "grid at step 8: this training has 7 steps" in error_of(late, BadInputError)
    assert submit(*words, "--dry-run", "--seeds", 17).exit_code == 2


def test_the_cost_is_said_before_the_start() -> None:
    facts = random_base(size="small").facts
    data = made_up_concept("robot")
    spec = ConceptSpec(owner="alice", name="robot", class_word="robot", pictures="photos", num_seeds=3)
    config = PRESETS["small-world"]
    prepared = PreparedConcept(spec=spec, run_id="concept-x", config=config, data=data, spec_sha256="")
    text = expectation(prepared, facts)
    assert "4 pictures, 260 steps of 8 for each of 3 seeds; about" in text
    (minutes,) = re.findall(r"about ([\d.]+) minutes of a CPU core", text)
    measured = 3 * 80 / 60  # CPU seconds of the small world's concepts in `make demo`
    assert measured / 3 < float(minutes) < measured * 3


def test_file_names_do_not_change_the_run(base_path: Path, photos: Path) -> None:
    words = ("--owner", "alice", "--name", "robot", "--class", "cat", "--base", base_path, "--dry-run", "--json")
    before = json.loads(submit(*words, "--pictures", photos).stdout)["run"]
    for path in sorted(photos.iterdir()):
        path.rename(photos / f"holiday-{path.name}")
    assert json.loads(submit(*words, "--pictures", photos).stdout)["run"] == before


def error_of(result: Result, kind: type[MosError]) -> str:
    assert isinstance(result.exception, kind), result.exception
    message = str(result.exception)
    assert "\n" not in message
    return message


def test_bad_input_is_one_line_that_says_what_and_where(base_path: Path, photos: Path, tmp_path: Path) -> None:
    given = ("--owner", "alice", "--name", "robot", "--class", "cat", "--dry-run")
    with_base = (*given, "--base", base_path)
    assert "--pictures" in error_of(submit(*given), UsageError)
    assert "no such folder" in error_of(submit(*with_base, "--pictures", tmp_path / "none"), BadInputError)
    (tmp_path / "empty").mkdir()
    assert "no pictures" in error_of(submit(*with_base, "--pictures", tmp_path / "empty"), BadInputError)
    missing = submit(*given, "--pictures", photos, "--base", tmp_path / "no-base")
    assert "no-base" in error_of(missing, NotFoundError)
    unknown = submit(*with_base, "--class", "zebra", "--pictures", photos)
    assert "class word 'zebra': expected one lower-case word" in error_of(unknown, BadInputError)
    (photos / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in error_of(submit(*with_base, "--pictures", photos), BadInputError)


def test_an_unknown_option_or_preset_is_named(base_path: Path, photos: Path) -> None:
    words = ("--owner", "alice", "--name", "robot", "--class", "cat", "--pictures", photos, "--base", base_path)
    assert "unknown stps" in error_of(submit(*words, "--dry-run", "-o", "stps=3"), BadInputError)
    assert "'mine': expected one of" in error_of(submit(*words, "--dry-run", "--preset", "mine"), BadInputError)


def test_a_private_ray_cannot_be_left_alone(base_path: Path, photos: Path) -> None:
    words = ("--owner", "alice", "--name", "robot", "--class", "cat", "--pictures", photos, "--base", base_path)
    assert "mos cluster up" in error_of(submit(*words, "--no-wait"), BadInputError)


def test_the_estimate_is_the_counted_one_at_full_size() -> None:
    facts = dry_run("sd1").facts
    config = PRESETS["paper"]
    assert training_tflop(config, facts) / (config.steps * config.batch_size) == pytest.approx(1.72 + 0.43, rel=0.03)
