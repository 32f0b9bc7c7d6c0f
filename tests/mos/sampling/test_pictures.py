import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from mos.errors import BadInputError, NotFoundError
from mos.sampling import Region, SamplingConfig
from mos.sampling.pictures import picture_grid, read_recipe, recipe, save_picture


def some_recipe(**changes):
    mask = torch.zeros(4, 6)
    mask[1:3] = 1
    fields = {
        "base": {"name": "tiny", "fingerprint": "00"},
        "model": "base",
        "prompt": "ein Kätzchen <bob-cat>",
        "negative_prompt": "",
        "regions": [Region(prompt="a", box=(0, 0, 0.5, 1)), Region(prompt="b", mask=mask, soft_edge=0.1)],
        "seed": 2**40,
        "config": SamplingConfig(scheduler="euler"),
        "scale": 0.7,
    }
    return recipe(**(fields | changes))


def test_recipe_travels_inside_the_picture(tmp_path):
    path = tmp_path / "one.png"
    save_picture(Image.new("RGB", (8, 8), (1, 2, 3)), path, some_recipe())
    found = read_recipe(path)
    assert found == some_recipe()
    assert found["seed"] == 2**40
    assert found["sampling"]["scheduler"] == "euler"
    assert found["regions"][0]["box"] == [0, 0, 0.5, 1]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["regions"][1]["mask"]))))
    assert mask.tolist() == [[0] * 6, [255] * 6, [255] * 6, [0] * 6]
    assert [entry.name for entry in tmp_path.iterdir()] == ["one.png"]


def test_pictures_without_a_recipe_or_of_a_newer_format_are_refused(tmp_path):
    with pytest.raises(NotFoundError):
        read_recipe(tmp_path / "none.png")
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "bare.png")
    with pytest.raises(BadInputError, match="carries no recipe"):
        read_recipe(tmp_path / "bare.png")
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "newer.png", some_recipe() | {"format": 99})
    with pytest.raises(BadInputError, match="format 99"):
        read_recipe(tmp_path / "newer.png")


def test_grid_places_pictures_row_by_row():
    pictures = [Image.new("RGB", (4, 3), (shade, 0, 0)) for shade in (10, 20, 30)]
    grid = picture_grid(pictures, columns=2, gap=1)
    assert grid.size == (9, 7)
    assert [grid.getpixel(place)[0] for place in ((0, 0), (5, 0), (0, 4), (5, 4))] == [10, 20, 30, 255]
