"""`mos submit evaluation` and `mos evaluation`: rows once each, whatever happens, and tables that match them."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cluster.errors import UnsatisfiableError
from cluster.evaluation import evaluations, missing_blocks, run_evaluation, run_serially, score_store
from cluster.evaluation_rows import block_bytes, read_block
from jobs.commands.evaluation import command, submit_evaluation
from jobs.evaluate import EvaluationRequest, prepare_evaluation
from mos.artifact import write_artifact
from mos.errors import BadInputError, CheckFailedError, NotFoundError
from mos.evaluation.drawing import FLOOR_BASE
from mos.evaluation.results import PictureScore
from mos.random_base import random_base
from mos.smallworld.concepts import concept_identity, concept_pictures
from tests.mos.artifacts import random_edlora
from tests.mos.evaluation.conftest import write_scorer
from tests.mos.test_base_model import save

SUITE = """
name = "two"
text_prefix = "a photo of "
generic = ["a dog"]
[families]
place = ["a <TOK> on the beach", "a <TOK> in the city"]
style = ["photo of a <TOK>"]
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A base, two concepts, their pictures, a suite and a scorer on disk."""
    folder = tmp_path_factory.mktemp("shelf")
    base = random_base("sd1")
    (folder / "base").mkdir()
    save(base, folder / "base")
    for seed, name in enumerate(("robot", "cat"), start=1):
        write_artifact(random_edlora(base, seed=seed), folder / f"{name}.safetensors")
        (folder / name).mkdir()
        for index, (picture, _, _) in enumerate(concept_pictures(concept_identity(seed, name), 0, 3)):
            picture.save(folder / name / f"{index}.png")
    write_scorer(folder / "scorer")
    (folder / "suite.toml").write_text(SUITE)
    return folder


def request_for(shelf: Path, registry: Path, **changes) -> EvaluationRequest:
    registry.mkdir(exist_ok=True)
    values = {
        "models": (f"al/robot={shelf / 'robot.safetensors'}", f"bo/cat={shelf / 'cat.safetensors'}"),
        "suite": str(shelf / "suite.toml"),
        "registry_url": str(registry),
        "num_seeds": 2,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "references": {"al/robot": shelf / "robot", "bo/cat": shelf / "cat"},
        "identities": {},
        "base": str(shelf / "base"),
        "scorer": str(shelf / "scorer"),
    }
    return EvaluationRequest(**(values | changes))


@pytest.fixture(scope="module")
def evaluated(shelf, tmp_path_factory):
    """One evaluation run to its end, with the registry it is in."""
    registry = tmp_path_factory.mktemp("registry")
    job = prepare_evaluation(request_for(shelf, registry))
    outcome = run_serially(job)
    return job, outcome, registry


def stored(registry: Path):
    (digest,) = evaluations(str(registry))
    return score_store(str(registry), digest).read()


def test_every_model_draws_every_prompt_and_seed_once(evaluated):
    _, outcome, registry = evaluated
    rows = [row.score for row in stored(registry)]
    assert outcome.num_rows == len(rows) == 2 * (6 + 2) + 2 * 6
    keys = [(row.model, *row.pair) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row.method for row in rows} == {"single", FLOOR_BASE}
    assert {row.concept for row in rows} == {"al/robot", "bo/cat", ""}
    digests = {row.model: row.model_digest for row in rows}
    assert len({digests["al/robot"], digests["bo/cat"]}) == 2
    assert all(len(digests[name]) == 64 for name in ("al/robot", "bo/cat"))
    assert digests[FLOOR_BASE] == ""


def test_rows_carry_likeness_rank_drift_and_diversity(evaluated):
    rows = [row.score for row in stored(evaluated[2])]
    concept = [row for row in rows if row.concept]
    for row in concept:
        assert {"text_alignment", "image_alignment_pairwise", "image_alignment_first_reference"} <= set(row.scores)
        assert row.scores["identity_rank"] in (1.0, 2.0)
    assert sum("diversity" in row.scores for row in concept) == len(concept) / 2
    assert all(set(row.scores) == {"drift"} and row.scores["drift"] > 0 for row in rows if not row.concept)


def test_the_picture_beside_a_row_is_the_one_the_seed_draws(evaluated):
    from mos.base_model import load_base
    from mos.sampling import sample

    job, _, registry = evaluated
    row = next(item for item in stored(registry) if item.score.model == FLOOR_BASE and item.score.concept == "bo/cat")
    base = load_base(job.base)
    prompt = row.score.prompt.replace("<TOK>", "cat")
    (expected,) = sample(base, None, [prompt], seeds=[row.score.seed], config=job.config.sampling)
    found = np.asarray(Image.open(io.BytesIO(row.png)), float)
    assert np.abs(found - np.asarray(expected, float)).max() <= 2


def test_a_second_run_finds_everything_and_draws_nothing(evaluated):
    job, outcome, registry = evaluated
    before = {path: path.stat().st_mtime_ns for path in registry.rglob("*.parquet")}
    again = run_serially(job)
    assert (again.num_made, again.num_rows, again.num_found) == (0, 0, outcome.num_made)
    assert missing_blocks(job) == []
    assert {path: path.stat().st_mtime_ns for path in registry.rglob("*.parquet")} == before


def test_only_the_missing_block_is_made_again_with_equal_rows(evaluated):
    job, _, registry = evaluated
    before = stored(registry)
    lost = sorted(registry.rglob("*.parquet"))[0]
    lost.unlink()
    again = run_serially(job)
    assert again.num_made == 1
    assert stored(registry) == before


def test_a_model_added_later_joins_the_same_evaluation(shelf, tmp_path):
    registry = tmp_path / "registry"
    first = prepare_evaluation(request_for(shelf, registry, models=(f"al/robot={shelf / 'robot.safetensors'}",),
                                           references={"al/robot": shelf / "robot"}))  # fmt: skip
    second = prepare_evaluation(request_for(shelf, registry, references={"al/robot": shelf / "robot"}))
    made = run_serially(first).num_made
    added = run_serially(second)
    assert added.digest == first.config.digest
    assert added.num_found == made
    assert added.num_made == len(second.blocks()) - made > 0


def test_other_settings_are_another_evaluation(shelf, tmp_path):
    registry = tmp_path / "registry"
    digests = {
        prepare_evaluation(request_for(shelf, registry, **change)).config.digest
        for change in ({}, {"num_seeds": 3}, {"num_inference_steps": 3}, {"guidance_scale": 2.0})
    }
    assert len(digests) == 4


def ask(*arguments: str) -> str:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False).stdout


def test_the_tables_show_what_is_stored(evaluated, tmp_path):
    _, outcome, registry = evaluated
    run = CliRunner()
    listed = json.loads(
        run.invoke(command, ["show", "--registry", str(registry), "--json"], catch_exceptions=False).stdout
    )
    assert listed == [{"digest": outcome.digest[:12], "suite": "two", "seeds": 2, "models": 3, "pictures": 28}]
    arguments = ["show", outcome.digest[:6], "--registry", str(registry)]
    shown = json.loads(ask(*arguments, "--json"))
    single = next(cell for cell in shown["cells"] if cell["method"] == "single")
    values = [
        row.score.scores["text_alignment"]
        for row in stored(registry)
        if row.score.method == "single" and row.score.concept
    ]
    assert single["scores"]["text_alignment"]["mean"] == pytest.approx(np.mean(values))
    assert "single · al/robot" in ask(*arguments, "--by", "concept")
    compared = ask("compare", outcome.digest[:6], "single", FLOOR_BASE, "--registry", str(registry))
    assert "text-alignment" in compared
    assert "12" in compared.splitlines()[1].split()


def test_the_report_stands_alone_and_shows_every_method(evaluated, tmp_path):
    _, outcome, registry = evaluated
    arguments = ["report", outcome.digest[:8], "--out", str(tmp_path / "page"), "--registry", str(registry)]
    printed = ask(*arguments).strip()
    assert printed == str(tmp_path / "page" / "evaluation.html")
    text = Path(printed).read_text()
    assert text.count("<img") == 2 * 3 * 2
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "floor: untrained base" in text


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"models": ()}, BadInputError, "no model"),
        ({"models": ("base",)}, BadInputError, "only the base"),
        ({"suite": "no-such"}, NotFoundError, "no-such"),
        ({"scorer": "no-such"}, NotFoundError, "no-such"),
        ({"references": {"x/y": Path()}}, BadInputError, "no model here draws it"),
        ({"references": {"al/robot": Path("no-such")}}, NotFoundError, "no-such"),
    ],
)
def test_bad_requests_are_refused_before_any_work(shelf, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        prepare_evaluation(request_for(shelf, tmp_path / "registry", **changes))
    assert list((tmp_path / "registry").iterdir()) == []


def test_a_malformed_pair_is_one_line_and_exit_code_three(shelf):
    result = CliRunner().invoke(submit_evaluation, ["base", "--references", "alice"])
    assert isinstance(result.exception, BadInputError)
    assert "owner/name=" in str(result.exception)


def test_a_block_survives_the_round_trip_and_a_changed_one_does_not():
    score = PictureScore(method="single", concept="a/b@1", prompt="p", seed=3, scores={"drift": 0.25}, family="f")
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    data = block_bytes([score], [image])
    (row,) = read_block(data, "block")
    assert row.score == score
    assert Image.open(io.BytesIO(row.png)).getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(CheckFailedError, match="not a readable"):
        read_block(data[:-9], "block")


def test_a_block_of_a_newer_format_is_refused_with_the_way_out():
    import pyarrow as pa
    import pyarrow.parquet as pq

    score = PictureScore(method="single", concept="a/b@1", prompt="p", seed=3, scores={})
    table = pq.read_table(io.BytesIO(block_bytes([score], [Image.new("RGB", (8, 8))])))
    for metadata, error in (({"mos.evaluation.format": "2"}, BadInputError), ({}, CheckFailedError)):
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer)
        with pytest.raises(error, match=r"newer mos|not of an evaluation"):
            read_block(buffer.getvalue(), "block")
    assert isinstance(table, pa.Table)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_pipeline_on_ray_makes_the_rows_the_serial_run_makes(evaluated, shelf, tmp_path):
    from cluster.session import local_ray

    job = dataclasses.replace(evaluated[0], registry_url=str(tmp_path / "registry"))
    Path(job.registry_url).mkdir()
    seen = []
    with local_ray(num_cpus=2):
        with pytest.raises(UnsatisfiableError, match="evaluation asks for 99 CPU, and no node has that: 1 node with 2"):
            run_evaluation(job, drawer_cpus=99)
        outcome = run_evaluation(job, on_block=lambda done, total: seen.append((done, total)))
    assert outcome.num_rows == 28
    assert seen[-1] == (outcome.num_made, outcome.num_made)
    serial, piped = stored(evaluated[2]), stored(Path(job.registry_url))
    assert [row.score.pair for row in serial] == [row.score.pair for row in piped]
    for left, right in zip(serial, piped, strict=True):
        assert left.score.scores == pytest.approx(right.score.scores, abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(2700)
@pytest.mark.parametrize("where", [["--no-ray"], []], ids=["in one process", "on Ray"])
def test_a_run_that_is_killed_is_completed_without_repeating_rows(shelf, tmp_path, where):
    prompts = ", ".join(f'"a <TOK> at {number}"' for number in range(20))
    suite = tmp_path / "twenty.toml"
    suite.write_text(f'name = "twenty"\ngeneric = ["a dog", "a cat"]\n[families]\nplace = [{prompts}]\n')
    registry = tmp_path / "registry"
    registry.mkdir()
    arguments = [
        sys.executable, "-m", "jobs.cli", "submit", "evaluation",
        f"al/robot={shelf / 'robot.safetensors'}", f"bo/cat={shelf / 'cat.safetensors'}",
        "--suite", str(suite), "--seeds", "2", "--steps", "3", "--guidance", "1", "--base", str(shelf / "base"),
        "--scorer", str(shelf / "scorer"), "--registry", str(registry), "--json", *where,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        deadline = time.monotonic() + 1200
        while len(list(registry.rglob("*.parquet"))) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, log.read_text()[-2000:]
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = len(list(registry.rglob("*.parquet")))
    assert before >= 2, log.read_text()[-2000:]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=1200, check=True)
    outcome = json.loads(done.stdout)
    assert outcome["num_found"] >= before
    rows = [(row.score.model, *row.score.pair) for row in stored(registry)]
    assert len(rows) == len(set(rows)) == 2 * (40 + 4) + 2 * 40
