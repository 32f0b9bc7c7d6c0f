"""Specs: what names a run, what a TOML file may hold, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.specs import ConceptSpec, FusionSpec, load_spec
from jobs.submission import concept_spec, fusion_spec, parse_options
from mos.errors import BadInputError, UsageError

ROBOT = ConceptSpec(owner="alice", name="robot", class_word="robot", pictures="photos")
PICTURES = "ab" * 32


def test_the_same_spec_and_pictures_are_the_same_run_wherever_the_pictures_lie() -> None:
    elsewhere = ConceptSpec(owner="alice", name="robot", class_word="robot", pictures="/other/place")
    assert ROBOT.run_id(PICTURES) == elsewhere.run_id(PICTURES)
    assert ROBOT.run_id(PICTURES).startswith("concept-alice-robot-")


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"kind": "pet"}, {"options": {"steps": 3}}, {"base": "other"}, {"num_seeds": 3}]
)
def test_whatever_shapes_the_result_makes_another_run(change: dict[str, object]) -> None:
    other = ConceptSpec(**ROBOT.__dict__ | change)
    assert other.run_id(PICTURES) != ROBOT.run_id(PICTURES)
    assert ROBOT.run_id("cd" * 32) != ROBOT.run_id(PICTURES)


def test_grids_do_not_make_another_run() -> None:
    assert replace(ROBOT, grid_steps=(0,)).run_id(PICTURES) == ROBOT.run_id(PICTURES)


def test_a_spec_survives_json() -> None:
    fusion = FusionSpec(concepts=("alice/robot", "bob/cat@2"), out="fused", options={"solver": "exact"})
    looked_at = replace(ROBOT, num_seeds=3, grid_steps=(100, 0))
    assert ConceptSpec.from_json(json.loads(json.dumps(looked_at.to_json()))) == looked_at
    assert FusionSpec.from_json(fusion.to_json()) == fusion


def test_a_toml_file_is_a_spec_with_folders_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "robot.toml"
    path.write_text(
        'kind = "concept"\nshows = "pet"\nowner = "alice"\nname = "robot"\nclass_word = "robot"\n'
        'pictures = "photos"\n[options]\nlr_unet = 1e-3\n'
    )
    spec = load_spec(path)
    assert isinstance(spec, ConceptSpec)
    assert (spec.kind, spec.pictures, spec.options) == ("pet", str(tmp_path / "photos"), {"lr_unet": 1e-3})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind = ", "not readable as TOML"),
        ('kind = "poem"', "expected kind"),
        ('kind = "concept"\nowner = "alice"\nstep = 3', "unknown step"),
        ('kind = "concept"\nowner = "alice"', "missing"),
        ('kind = "fusion"\nconcepts = ["alice/robot", "alice/robot@2"]\nout = "x"', "named twice"),
        ('kind = "fusion"\nconcepts = ["alice robot"]\nout = "x"', "expected owner/name"),
        ('kind = "concept"\nformat = 99\n', "update mos"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_by_its_cause(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        load_spec(path)


def test_options_on_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "robot.toml"
    path.write_text(
        'kind = "concept"\nowner = "alice"\nname = "robot"\nclass_word = "robot"\npictures = "p"\nseed = 1\n'
        "[options]\nsteps = 5\nbatch_size = 2\n"
    )
    spec = concept_spec(path, {"seed": 7, "title": None}, ["steps=9"])
    assert (spec.seed, spec.options) == (7, {"steps": 9, "batch_size": 2})


def test_options_are_read_as_toml_and_bare_words_are_text() -> None:
    assert parse_options(["steps=300", "lr_unet=1e-3", "solver=exact", "flip=true"]) == {
        "steps": 300,
        "lr_unet": 1e-3,
        "solver": "exact",
        "flip": True,
    }
    with pytest.raises(BadInputError, match="NAME=VALUE"):
        parse_options(["steps"])


def test_what_is_missing_is_named_by_its_flag() -> None:
    with pytest.raises(UsageError, match="--class, --pictures"):
        concept_spec(None, {"owner": "alice", "name": "robot"}, [])
    with pytest.raises(UsageError, match="--out"):
        fusion_spec(None, ["alice/robot"], None, [], base=None, publish="", allow_unlisted=False)
