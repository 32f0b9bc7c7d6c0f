import re

import pytest
import torch
from PIL import Image

from mos.errors import NotFoundError
from mos.sampling.layout import parse_region, read_layout, read_mask
from mos.sampling.region import RegionError


def test_region_text_gives_prompt_negative_and_box():
    region = parse_region("a <bob-cat>, asleep | a dog @ 0, 0.25, 32, 64".replace("0.25", "16"), width=64, height=64)
    assert region.prompt == "a <bob-cat>, asleep"
    assert region.negative_prompt == "a dog"
    assert region.box == (0, 0.25, 0.5, 1)


def test_region_text_may_name_a_mask_file(tmp_path):
    Image.new("L", (8, 4), 255).save(tmp_path / "all.png")
    region = parse_region(f"a cat @ {tmp_path / 'all.png'}", width=64, height=64)
    assert torch.equal(region.mask, torch.ones(4, 8))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cat 0,0,1,1", "expected"),
        ("@ 0,0,1,1", "expected"),
        ("a cat @", "expected"),
        ("a cat @ left", "neither x0,y0,x1,y1 nor a .png mask"),
        ("a cat @ 0,0,1", "3 numbers"),
        ("a cat @ __import__('os'),0,1,1", "neither"),
    ],
)
def test_bad_region_text_gets_one_clear_line(text, found):
    with pytest.raises(RegionError, match=re.escape(found)):
        parse_region(text, width=64, height=64)


def test_transparency_wins_over_brightness_in_a_mask(tmp_path):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (255, 255, 255, 0))
    picture.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[1.0, 0.0]]


def test_sixteen_bit_mask_keeps_its_greys(tmp_path):
    Image.new("I;16", (2, 2), 32768).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png")[0, 0] == pytest.approx(0.5, abs=1e-4)


def test_mask_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"not a picture")
    with pytest.raises(RegionError, match="cannot be read as a picture"):
        read_mask(tmp_path / "mask.png")
    with pytest.raises(NotFoundError, match="no such file"):
        read_mask(tmp_path / "other.png")


SCENE = """
prompt = "three friends on a beach"
negative_prompt = "text"

[[region]]
prompt = "<alice-robot>"
negative_prompt = "a cat"
box = [0, 0, 0.5, 1]
weight = 2

[[region]]
prompt = "<bob-cat>"
mask = "right.png"
soft_edge = 0.1
condition_weight = 0.5
"""


def test_layout_file_round_trip(tmp_path):
    Image.new("L", (4, 4), 255).save(tmp_path / "right.png")
    (tmp_path / "scene.toml").write_text(SCENE)
    layout = read_layout(tmp_path / "scene.toml", width=64, height=64)
    assert (layout.prompt, layout.negative_prompt) == ("three friends on a beach", "text")
    robot, cat = layout.regions
    assert (robot.prompt, robot.negative_prompt, robot.box, robot.weight) == (
        "<alice-robot>",
        "a cat",
        (0, 0, 0.5, 1),
        2.0,
    )
    assert cat.mask.shape == (4, 4)
    assert (cat.soft_edge, cat.condition_weight) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("prompt = 3", "expected a text"),
        ("promt = 'x'", "unknown key 'promt'"),
        ("= 1", "not valid TOML"),
        ("[[region]]\nbox = [0, 0, 1, 1]", "region 1: has no prompt"),
        ("[[region]]\nprompt = 'a'\nbox = [0, 0, '1', 1]", "expected four numbers"),
        ("[[region]]\nprompt = 'a'\nbox = [0, 0, 1, 1]\nweight = true", "expected a number"),
        ("[[region]]\nprompt = 'a'\nbox = [0, 0, 1, 1]\ncolour = 1", "unknown key 'colour'"),
        ("region = 3", "as a [[region]] table"),
    ],
)
def test_bad_layouts_get_one_clear_line(tmp_path, text, found):
    (tmp_path / "scene.toml").write_text(text)
    with pytest.raises(RegionError, match=re.escape(found)) as caught:
        read_layout(tmp_path / "scene.toml", width=64, height=64)
    assert "\n" not in str(caught.value)
