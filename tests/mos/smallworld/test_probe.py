"""The shipped probe reads renders it has never seen, whole and in part; `prepare` keeps proportions."""

import numpy as np
import pytest
import torch
from PIL import Image

from mos.errors import NotFoundError
from mos.smallworld import assets
from mos.smallworld.figures import attribute_rates, held_out_scenes, place_box
from mos.smallworld.probe import Probe, prepare
from mos.smallworld.probe_training import save_probe
from mos.smallworld.render import render_scene
from mos.smallworld.world import World


def test_a_tall_crop_keeps_its_proportions_and_repeats_its_edges():
    image = Image.new("RGB", (32, 64), (10, 20, 30))
    image.paste((200, 0, 0), (8, 0, 24, 64))
    pixels = prepare(image)
    assert pixels.shape == (3, 64, 64)
    red = (pixels[0] > 0.5).float().mean()
    assert float(red) == pytest.approx(0.25)
    assert torch.equal(pixels[:, :, 0], pixels[:, :, 15])


def test_the_shipped_probe_reads_held_out_renders():
    probe = assets.load_probe()
    scenes = held_out_scenes(96, seed=1, world=World())
    rates = attribute_rates(probe.predict([render_scene(scene).image for scene in scenes]), scenes)
    for name in ("class_name", "pattern", "accessory", "backdrop"):
        assert rates[name] >= 0.96, name
    assert rates["main hue error"] < 12
    assert rates["second hue error"] < 12


def test_the_shipped_probe_reads_the_regions_of_a_group():
    probe = assets.load_probe()
    scenes = held_out_scenes(24, seed=2, world=World(), num_subjects=3)
    pairs = [(render_scene(scene).image.crop(place_box(who)), who) for scene in scenes for who in scene.subjects]
    readings = probe.predict([crop for crop, _ in pairs])
    for attribute in ("class_name", "pattern", "accessory"):
        hits = [
            getattr(reading, attribute) == getattr(who.identity, attribute)
            for reading, (_, who) in zip(readings, pairs, strict=True)
        ]
        assert np.mean(hits) >= 0.93, attribute


def test_a_saved_probe_reads_the_same(tmp_path):
    torch.manual_seed(0)
    probe = Probe()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    loaded = assets.load_probe(save_probe(probe, tmp_path))
    first, second = probe.predict([image])[0], loaded.predict([image])[0]
    for name, values in first.probabilities.items():
        assert second.probabilities[name] == pytest.approx(values, abs=5e-3)
        assert sum(values.values()) == pytest.approx(1)


def test_missing_weights_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "WEIGHTS", tmp_path)
    with pytest.raises(NotFoundError, match=r"mos\.smallworld\.pretrain"):
        assets.base_path()
