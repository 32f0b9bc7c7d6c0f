"""The paper's table: made whole on a tiny base, gone on with after a stop, and answers that follow from rows."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from jobs import evaluate_table
from jobs.evaluate_claims import BY_HAND, answers, claims_page, command_line, losses, scale_zero
from jobs.table_config import FUSIONS, SCALE_ZERO, TableConfig, TableRun, fused_method
from jobs.table_figures import kept_figure
from mos.errors import BadInputError, ConflictError
from mos.evaluation.drawing import CEILING_AUTOENCODER, FLOOR_BASE
from mos.evaluation.results import PictureScore, values_of
from mos.evaluation.verdicts import PRIMARY
from mos.random_base import random_base
from tests.mos.evaluation.conftest import write_scorer
from tests.mos.test_base_model import save

SUITE = """
name = "short"
generic = ["a dog"]
[families]
place = [{text = "a <TOK> in space", backdrop = "space"}, {text = "a <TOK> in the city", backdrop = "city"}]
"""
ROWS = ("ED-LoRA + average", "ED-LoRA + gradient (exact)")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "base").mkdir()
    save(random_base("sd1"), folder / "base")
    write_scorer(folder / "scorer")
    (folder / "suite.toml").write_text(SUITE)
    return folder


def arguments(shelf: Path, out: Path, *extra: str) -> list[str]:
    return [
        "--out", str(out), "--concepts", "2", "--seeds", "1", "--sizes", "2", "--prompt-seeds", "1", "--steps", "1",
        "--guidance", "1", "--training-steps", "2", "--singles", "ED-LoRA", "--fusions", ",".join(ROWS),
        "--workers", "1",
        "--suite", str(shelf / "suite.toml"), "--base", str(shelf / "base"), "--scorer", str(shelf / "scorer"), *extra,
    ]  # fmt: skip


def test_one_command_trains_fuses_draws_scores_and_writes_and_then_finds_it_all_done(shelf, tmp_path):
    out, page = tmp_path / "table", tmp_path / "docs" / "claims.md"
    run = CliRunner()
    first = run.invoke(evaluate_table.main, arguments(shelf, out, "--docs", str(page)), catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert len(list(out.rglob("*.safetensors"))) == 2 + len(ROWS)
    text = page.read_text()
    for words in ("ED-LoRA + gradient (exact) · 2", SCALE_ZERO, "Same prompts", "--concepts 2", "cannot be told"):
        assert words.lower() in text.lower()
    assert [path.name for path in sorted((page.parent / "claims").iterdir())] == ["grid-2.png", "kept.svg"]
    with Image.open(page.parent / "claims" / "grid-2.png") as grid:
        assert grid.size == (96 * 6, 66 + 96 * 2)  # renders, ED-LoRA, its scale 0, two fusions, the bare base
    assert (out / "evaluation.html").read_text().count("<img") == 2 * 2 * 8

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".parquet")}
    second = run.invoke(evaluate_table.main, arguments(shelf, out), catch_exceptions=False)
    assert second.exit_code == 0
    assert "train" not in second.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before

    page.write_text(f"old figures\n{BY_HAND}\n\nWhat they mean.\n")
    lost = sorted(out.rglob("*.parquet"))[0]
    lost.unlink()
    concept = out / "concepts" / "ed-lora" / "02-seed0.safetensors"
    concept.unlink()
    third = run.invoke(evaluate_table.main, arguments(shelf, out, "--docs", str(page)), catch_exceptions=False)
    assert third.exit_code == 0, third.output
    assert "train ED-LoRA, seed 0, concepts 2" in third.stderr
    kept = [path for path in before if path not in (lost, concept)]
    assert concept.exists()
    assert [path.stat().st_mtime_ns for path in kept] == [before[path] for path in kept]
    assert (out / "claims.md").exists()
    assert page.read_text().endswith(f"\n{BY_HAND}\n\nWhat they mean.\n")
    assert "old figures" not in page.read_text()


def test_the_page_can_be_written_of_what_is_there_so_far(shelf, tmp_path):
    run, out = CliRunner(), tmp_path / "table"
    early = run.invoke(evaluate_table.main, arguments(shelf, out, "--until", "nothing"))
    assert early.exit_code == 4
    assert "nothing was drawn" in early.stderr
    trained = run.invoke(evaluate_table.main, arguments(shelf, out, "--until", "train"), catch_exceptions=False)
    assert trained.exit_code == 0
    assert len(list(out.rglob("*.safetensors"))) == 2
    assert not list(out.rglob("*.parquet"))
    whole = run.invoke(evaluate_table.main, arguments(shelf, out), catch_exceptions=False)
    assert whole.exit_code == 0
    shutil.rmtree(out / "fused" / "ed-lora-plus-average")
    part = run.invoke(evaluate_table.main, arguments(shelf, out, "--until", "nothing"), catch_exceptions=False)
    assert part.exit_code == 0
    text = (out / "claims.md").read_text()
    assert "- only 2 of 14 concepts" in text
    assert "- ED-LoRA + average of 3" in text
    assert "| ED-LoRA + gradient (exact) · 2 |" in text
    assert "| ED-LoRA + average · 2 |" not in text


def test_a_folder_may_grow_but_not_change_its_base_or_its_recipes(tmp_path):
    base = random_base("sd1")
    TableRun(tmp_path, TableConfig(num_concepts=5, sizes=(3,))).settle(base)
    TableRun(tmp_path, TableConfig(num_concepts=6, sizes=(3, 5), num_seeds=2)).settle(base)
    with pytest.raises(ConflictError, match="another recipe of textual inversion"):
        TableRun(tmp_path, TableConfig(training_steps=7)).settle(base)
    with pytest.raises(ConflictError, match="another base"):
        TableRun(tmp_path, TableConfig()).settle(random_base("sd1", seed=1))


def test_concepts_are_held_out_and_keep_their_identity_over_methods_and_seeds():
    from mos.smallworld.world import is_held_out

    config = TableConfig()
    identities = [config.identity(index) for index in range(14)]
    assert all(is_held_out(identity) for identity in identities)
    assert len({identity.cell for identity in identities}) == 14
    refs = {str(config.ref(index, seed)) for index in range(14) for seed in range(3)}
    assert len(refs) == 42
    assert str(config.ref(0, 2)) == "o01/robot@3"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"singles": ("DreamBooth",), "fusions": ()}, "no row DreamBooth"),
        ({"singles": ("LoRA",)}, "needs the single concepts of ED-LoRA"),
        ({"num_concepts": 2}, "sizes"),
        ({"num_concepts": 0, "sizes": ()}, "1 to 99"),
    ],
)
def test_settings_that_make_no_table_are_refused(options, words):
    with pytest.raises(BadInputError, match=words):
        TableConfig(**options)


CONFIG = TableConfig(num_concepts=3, num_seeds=2, sizes=(3,))


def rows(levels: dict[str, float]) -> list[PictureScore]:
    """Twenty prompts of three concepts and two trainings, each method at its level but for a shared wobble."""
    return [
        PictureScore(
            method=method,
            concept=str(CONFIG.ref(index, seed)),
            prompt=f"prompt {number}",
            seed=number,
            scores={
                PRIMARY: level + 0.01 * ((number + index) % 4),
                "probe_class": 1.0,
                "probe_accessory": 0.97,
                "probe_backdrop": 1.0,
            },
        )
        for method, level in levels.items()
        for index in range(3)
        for seed in range(2)
        for number in range(20)
    ]


LEVELS = {
    "LoRA": 0.8,
    "ED-LoRA": 0.9,
    SCALE_ZERO: 0.5,
    FLOOR_BASE: 0.3,
    CEILING_AUTOENCODER: 0.99,
    fused_method("LoRA + average", 3): 0.5,
    fused_method("ED-LoRA + average", 3): 0.7,
    fused_method("ED-LoRA + gradient (lbfgs)", 3): 0.85,
    fused_method("ED-LoRA + gradient (exact)", 3): 0.78,
}


def by_method(scores):
    methods = dict.fromkeys(row.method for row in scores)
    return {method: values_of((row for row in scores if row.method == method), PRIMARY) for method in methods}


def test_the_questions_are_answered_from_paired_rows():
    found = {question: verdicts[3].holds for question, verdicts in answers(by_method(rows(LEVELS)), CONFIG).items()}
    assert found == {
        "Averaging costs ED-LoRA less than LoRA.": True,
        "ED-LoRA + gradient (lbfgs) keeps more than averaging.": True,
        "ED-LoRA + gradient (exact) keeps more than averaging.": True,
        "ED-LoRA + gradient (lbfgs) loses at most a third of what averaging loses.": True,
        "ED-LoRA + gradient (exact) loses at most a third of what averaging loses.": False,
    }
    told = scale_zero(by_method(rows(LEVELS)))
    assert told is not None
    assert told.holds is True
    assert told.evidence.startswith("0.200 ")
    assert scale_zero(by_method(rows({"ED-LoRA": 0.9}))) is None


def test_the_figure_has_a_line_a_row_and_a_point_a_size():
    levels = LEVELS | {fused_method("ED-LoRA + average", 2): 0.8}
    figure = kept_figure(rows(levels), TableConfig(num_concepts=3, num_seeds=2, sizes=(2, 3)))
    assert figure.count("identity kept (probe)") == 1
    panel = figure.partition("</g></g>")[0]  # the first one, identity
    lines = {title: panel.partition(f"<title>{title}</title>")[2].partition("</g>")[0] for title in LINES}
    assert {title: found.count("<circle") for title, found in lines.items()} == LINES


LINES = {"ED-LoRA alone": 2, "ED-LoRA + average": 2, "LoRA + average": 1, "ED-LoRA + gradient (exact)": 1}


def test_what_fusing_costs_is_single_minus_fused():
    found = {item.row: item for item in losses(by_method(rows(LEVELS)), CONFIG)}
    assert found["ED-LoRA + average"].loss.mean == pytest.approx(0.2)
    assert found["LoRA + average"].loss.mean == pytest.approx(0.3)
    assert found["ED-LoRA + gradient (lbfgs)"].level.mean == pytest.approx(0.865)


def test_the_page_says_whether_the_base_may_tell_and_how_to_make_it_again(tmp_path):
    page = claims_page(TableRun(tmp_path, CONFIG), "ab" * 32, rows(LEVELS), "claims")
    assert "Yes: ceiling: autoencoder, probe_class 1.000, needed 0.95" in page
    assert "probe_accessory 0.970, needed 0.95" in page
    assert "| ED-LoRA + gradient (exact) loses at most a third of what averaging loses. | **no** 0.120 [" in page
    assert "--concepts 3 --seeds 2 --sizes 3" in page
    assert "| ED-LoRA + average | 3 | 0.715" in page


def test_the_command_on_the_page_names_only_what_differs_from_the_full_table(tmp_path):
    assert command_line(TableRun(tmp_path, TableConfig())) == (
        "python -m jobs.evaluate_table --out runs/table --docs docs/claims.md"
    )
    assert set(FUSIONS) == set(TableConfig().fusions)
