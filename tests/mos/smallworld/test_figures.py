"""Figures measure what they say: perfect pictures score one, wrong ones do not."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from mos.smallworld import assets, curves
from mos.smallworld.curves import read_points
from mos.smallworld.figures import (
    Figure,
    full_captions,
    held_out_scenes,
    measure_places,
    measure_samples,
    place_box,
)
from mos.smallworld.pretrain import export_weights
from mos.smallworld.render import render_scene
from mos.smallworld.report import main, sheet, table
from mos.smallworld.world import World, is_held_out


@pytest.fixture(scope="module")
def probe():
    return assets.load_probe()


def test_figures_are_measured_on_held_out_individuals_only():
    for count in (1, 2, 3):
        scenes = held_out_scenes(20, seed=5, world=World(), num_subjects=count)
        assert all(is_held_out(who.identity) for scene in scenes for who in scene.subjects)
        assert {len(scene.subjects) for scene in scenes} == {count}


def test_renders_of_the_captions_score_one_and_strangers_do_not(probe):
    scenes = held_out_scenes(40, seed=6, world=World())
    renders = [render_scene(scene).image for scene in scenes]
    right = {figure.name: figure for figure in measure_samples(probe, renders, scenes)}
    wrong = {figure.name: figure for figure in measure_samples(probe, renders[1:] + renders[:1], scenes)}
    for name in ("samples: class", "samples: pattern", "samples: accessory", "samples: backdrop"):
        assert right[name].value >= 0.95
        assert right[name].holds
        assert wrong[name].value < 0.6
        assert not wrong[name].holds
    assert right["samples: main hue error"].value < 15 < wrong["samples: main hue error"].value


def test_subjects_that_changed_places_are_noticed(probe):
    scenes = [
        scene
        for scene in held_out_scenes(60, seed=7, world=World(), num_subjects=2)
        if {who.place for who in scene.subjects} == {"left", "right"}
        and len({who.identity.class_name for who in scene.subjects}) == 2
    ]
    assert len(scenes) > 20
    renders = [render_scene(scene).image for scene in scenes]
    swapped = [_swap_halves(render) for render in renders]
    assert measure_places(probe, renders, scenes).value > 0.95
    assert measure_places(probe, swapped, scenes).value < 0.2


def test_a_place_is_a_box_inside_the_picture():
    for scene in held_out_scenes(10, seed=8, world=World(), num_subjects=4):
        for who in scene.subjects:
            x0, y0, x1, y1 = place_box(who)
            assert 0 <= x0 < x1 <= 64
            assert 0 <= y0 < y1 <= 64
            assert x0 <= who.centre[0] <= x1


def test_full_captions_are_the_same_for_the_same_seed():
    scenes = held_out_scenes(5, seed=9, world=World())
    assert full_captions(scenes, seed=1) == full_captions(scenes, seed=1)


def test_the_table_says_what_holds():
    figures = [
        Figure(name="good", value=0.9, bar=0.8),
        Figure(name="bad", value=12.0, bar=10.0, at_most=True),
        Figure(name="free", value=1.0),
    ]
    lines = table(figures).splitlines()
    assert lines[1].endswith("yes")
    assert lines[2].endswith("NO")
    assert lines[3].strip().endswith("1.000")


def test_a_sheet_holds_every_picture():
    pictures = [Image.new("RGB", (64, 64), (index, 0, 0)) for index in range(5)]
    made = sheet(pictures, columns=3, scale=1)
    assert made.size == (192, 128)
    assert made.getpixel((64, 64))[0] == 4


def test_a_resumed_log_keeps_the_later_of_two_values(tmp_path):
    rows = [{"step": 20, "loss": 3.0}, {"step": 40, "loss": 2.0}, {"step": 40, "loss": 1.0}]
    (tmp_path / "base.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_points(tmp_path / "base.jsonl", "loss") == [(20.0, 3.0), (40.0, 1.0)]
    assert curves.main([str(tmp_path), "--out", str(tmp_path / "curves.png")]) == 0
    picture = Image.open(tmp_path / "curves.png").convert("RGB")
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 2
    assert curves.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "none.png")]) == 4


def test_the_record_names_every_shipped_file_by_its_digest(tmp_path):
    record = json.loads((assets.WEIGHTS / "record.json").read_text())
    shipped = {str(path.relative_to(assets.WEIGHTS)) for path in assets.WEIGHTS.rglob("*") if path.is_file()} - {
        "record.json"
    }
    assert set(record["sha256"]) == shipped
    for part in ("base", "scorer", "probe"):
        (tmp_path / part).symlink_to(assets.WEIGHTS / part)
    again = json.loads((export_weights(tmp_path, tmp_path / "copy", seed=7) / "record.json").read_text())
    assert again["sha256"] == record["sha256"]


def test_shipped_weights_keep_to_their_limits():
    sizes = [path.stat().st_size for path in assets.WEIGHTS.rglob("*.safetensors")]
    assert len(sizes) >= 5
    assert max(sizes) <= 16 * 2**20
    assert sum(sizes) <= 32e6


def test_the_shipped_autoencoder_samples_what_the_base_learnt():
    autoencoder = AutoencoderKL.from_pretrained(assets.base_path(), subfolder="vae", torch_dtype=torch.float32)
    with torch.no_grad():
        posterior = autoencoder.encode(torch.rand(2, 3, 64, 64) * 2 - 1).latent_dist
    assert float(posterior.std.max()) < 1e-5


def test_the_report_names_what_is_missing(tmp_path, capsys):
    assert main(["--weights", str(tmp_path)]) == 4
    assert "base" in capsys.readouterr().err


def _swap_halves(image):
    swapped = Image.new("RGB", (64, 64))
    swapped.paste(image.crop((32, 0, 64, 64)), (0, 0))
    swapped.paste(image.crop((0, 0, 32, 64)), (32, 0))
    return swapped
