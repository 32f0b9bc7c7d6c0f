"""`mos sample`: what it writes, what it prints, and its one line for every mistake."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import cli
from mos.artifact import write_artifact
from mos.concept import ConceptRef
from mos.fusion import FusionConfig, FusionSource, fuse, write_fused
from mos.random_base import random_base
from mos.sampling.pictures import read_recipe
from tests.mos.artifacts import random_edlora
from tests.mos.sampling.test_condition import tiny_adapter
from tests.mos.test_base_model import save


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A base, two concepts, both fused, a mask, a sketch and a T2I-Adapter on disk."""
    folder = tmp_path_factory.mktemp("shelf")
    base = random_base("sd1")
    (folder / "base").mkdir()
    save(base, folder / "base")
    trained = {"robot": random_edlora(base, seed=1), "cat": random_edlora(base, seed=2)}
    for name, edlora in trained.items():
        write_artifact(edlora, folder / f"{name}.safetensors")
    sources = [FusionSource(ref=ConceptRef("eve", name, 1), edlora=edlora) for name, edlora in trained.items()]
    write_fused(fuse(base, sources, FusionConfig(strategy="sum", measure=False)), folder / "fused")
    Image.new("L", (8, 8), 255).save(folder / "all.png")
    tiny_adapter().save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def mos(shelf, monkeypatch, capsys):
    """Run `mos sample` as the command line does; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        words = ["mos", "sample", "--base", str(shelf / "base"), "--steps", "2", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.chdir(shelf)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.int16)


def test_pictures_grid_and_recipes_are_written_and_listed(mos, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = mos("base", "a cat", "a dog", "--count", "2", "--seed", "5", "--out", str(out), "--json")
    assert code == 0
    listed = json.loads(printed)
    names = ["00001.png", "00002.png", "00003.png", "00004.png"]
    assert [Path(entry["path"]).name for entry in listed["pictures"]] == names
    assert sorted(path.name for path in out.iterdir()) == [*names, "grid-00001.png"]
    assert pixels(listed["grid"]).shape == (66, 66, 3)
    found = [(recipe["prompt"], recipe["seed"]) for recipe in (read_recipe(out / name) for name in names)]
    assert found == [("a cat", 5), ("a cat", 6), ("a dog", 5), ("a dog", 6)]
    assert read_recipe(out / names[0]) == listed["pictures"][0]["recipe"]


def test_a_second_run_numbers_on_and_draws_the_same(mos, tmp_path):
    for _ in range(2):
        assert mos("base", "a cat", "--out", str(tmp_path))[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00001.png", "00002.png"]
    assert (pixels(tmp_path / "00001.png") == pixels(tmp_path / "00002.png")).all()


def test_a_concept_file_is_typed_by_its_stem_or_by_the_name_given(mos, tmp_path):
    code, _, said = mos("robot.safetensors", "a <local-robot>", "--out", str(tmp_path))
    assert code == 0
    assert "<local-robot>" in said
    code, _, _ = mos("alice/robot=robot.safetensors", "a <alice-robot>", "--out", str(tmp_path))
    assert code == 0
    assert (pixels(tmp_path / "00001.png") == pixels(tmp_path / "00002.png")).all()
    assert read_recipe(tmp_path / "00002.png")["model"].startswith("alice/robot robot.safetensors sha256:")


def test_regions_carry_unfused_concepts(mos, shelf, tmp_path):
    code, _, _ = mos(
        "base", "two friends", "--concept", "robot.safetensors", "--concept", "bob/cat=cat.safetensors",
        "--region", "a <local-robot> | a dog @ 0,0,16,32", "--region", "<bob-cat> @ 0.5,0,1,1", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    drawn = read_recipe(tmp_path / "00001.png")
    digests = [hashlib.sha256((shelf / f"{name}.safetensors").read_bytes()).hexdigest() for name in ("robot", "cat")]
    assert drawn["concepts"] == [
        f"local/robot robot.safetensors sha256:{digests[0]}", f"bob/cat cat.safetensors sha256:{digests[1]}"
    ]  # fmt: skip
    regions = drawn["regions"]
    assert [region["concepts"] for region in regions] == [["local/robot"], ["bob/cat"]]
    assert regions[0]["box"] == [0, 0, 0.5, 1]
    assert regions[0]["negative_prompt"] == "a dog"


def test_a_fused_model_draws_each_of_its_concepts_in_a_region(mos, shelf, tmp_path):
    regions = ("--region", "a <eve-robot> @ 0,0,0.5,1", "--region", "a <eve-cat> @ 0.5,0,1,1")
    code, _, said = mos("fused", "two friends", *regions, "--out", str(tmp_path))
    assert code == 0
    assert "<eve-cat> <eve-robot>" in said
    assert mos("fused", "two friends", "--out", str(tmp_path))[0] == 0
    assert (pixels(tmp_path / "00001.png") != pixels(tmp_path / "00002.png")).any()
    digest = hashlib.sha256((shelf / "fused" / "fused.safetensors").read_bytes()).hexdigest()
    assert read_recipe(tmp_path / "00001.png")["model"] == f"fused fused sha256:{digest}"


def test_layout_file_mask_auto_layout_and_condition(mos, shelf, tmp_path):
    (shelf / "scene.toml").write_text(
        'prompt = "a street"\n[[region]]\nprompt = "a cat"\nmask = "all.png"\n', encoding="utf-8"
    )
    assert mos("base", "--layout", "scene.toml", "--out", str(tmp_path))[0] == 0
    assert mos("base", "a street", "--region", "a cat @ all.png", "--out", str(tmp_path))[0] == 0
    assert (pixels(tmp_path / "00001.png") == pixels(tmp_path / "00002.png")).all()
    code, _, _ = mos(
        "base", "<local-robot> left of <local-cat>", "--concept", "robot.safetensors", "--concept", "cat.safetensors",
        "--auto-layout", "--condition", "adapter:all.png:0.5", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    drawn = read_recipe(tmp_path / "00003.png")
    assert [region["box"] for region in drawn["regions"]] == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    (condition,) = drawn["conditions"]
    assert (condition["adapter"], condition["picture"], condition["weight"]) == ("adapter", "all.png", 0.5)
    assert condition["picture_sha256"] == hashlib.sha256((shelf / "all.png").read_bytes()).hexdigest()
    assert len(condition["adapter_sha256"]) == 64


def test_a_published_concept_is_drawn_straight_from_the_registry(mos, shelf, tmp_path):
    from registry import Details, Registry

    home, url = tmp_path / "home", str(tmp_path / "registry")
    registry = Registry.open(url, create=True, home=home)
    key = registry.new_owner("alice")
    robot = ConceptRef.parse("alice/robot")
    registry.publish(shelf / "robot.safetensors", robot, key=key, run_id="run-1", details=Details(tags=("tin",)))
    registry.index()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOS_HOME", str(home))
        code, _, said = mos("alice/robot", "a <alice-robot>", "--registry", url, "--out", str(tmp_path / "out"))
        assert (code, "<alice-robot>" in said) == (0, True)
        assert read_recipe(tmp_path / "out" / "00001.png")["model"].startswith("alice/robot@1 sha256:")
        code, _, said = mos("alice/robot@9", "a <alice-robot>", "--registry", url, "--out", str(tmp_path / "out"))
        assert (code, "alice/robot@9" in said) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "code", "found"),
    [
        (["nowhere.safetensors", "a cat"], 4, "no such file or directory"),
        (["base"], 2, "no prompt"),
        (["base", "a <bob-cat>"], 3, "unknown word <bob-cat>"),
        (["robot.safetensors", "a <bob-cat>"], 3, "<local-robot>"),
        (["base", "a", "--region", "a cat"], 3, "expected"),
        (["base", "a", "--region", "a cat @ 0,0,2,0.5"], 3, "outside the picture"),
        (["base", "a", "--region", "a cat @ 0,0,0.1,0.1"], 3, "too small"),
        (["base", "a", "--region", "a cat @ 1,1,0,0"], 3, "reversed"),
        (["base", "a", "--region", "a cat @ 0.5,0,0.5,1"], 3, "is empty"),
        (["base", "a", "--region", "a cat @ 0,0,33,32"], 3, "outside the 32x32 picture"),
        (["base", "a", "--region", "a <bob-cat> @ 0,0,1,1"], 3, "unknown word <bob-cat>"),
        (["fused", "a", "--region", "a <bob-cat> @ 0,0,1,1"], 3, "<eve-robot>"),
        (["base", "a", *["--region", "a cat @ 0,0,1,1"] * 17], 3, "17 regions, at most 16"),
        (["base", "<bob-cat>", "--auto-layout"], 3, "two or more concept words"),
        (["base", "a", "--region", "a cat @ 0,0,1,1", "--auto-layout"], 2, "in one way"),
        (["base", "a", "--layout", "none.toml"], 4, "no such file"),
        (["base", "a", "--concept", "robot.safetensors"], 2, "no region names it"),
        (["base", "a", "--steps", "0"], 3, "num_inference_steps is 0"),
        (["base", "a", "--scheduler", "fastest"], 3, "unknown; use base"),
        (["base", "a", "--size", "big"], 2, "--size big"),
        (["base", "a", "--size", "30"], 3, "multiple of 4"),
        (["base", "a", "--device", "tpu9"], 2, "--device tpu9"),
        (["base", "a", "--condition", "adapter"], 2, "ADAPTER:PICTURE"),
        (["base", "a", "--condition", "nothing:all.png"], 4, "no such T2I-Adapter"),
        (["all.png", "a"], 3, "all.png"),
    ],
)
def test_every_mistake_gets_one_line_and_its_exit_code(mos, tmp_path, arguments, code, found):
    ended, printed, said = mos(*arguments, "--out", str(tmp_path / "out"))
    assert (ended, printed) == (code, "")
    assert found in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
