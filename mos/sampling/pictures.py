"""Pictures on disk: PNG files that carry the full recipe they were drawn by, and grids of them."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from mos.errors import BadInputError, NotFoundError
from mos.sampling.config import SamplingConfig
from mos.sampling.region import Region

RECIPE_KEY = "mos.recipe"
RECIPE_VERSION = 1


def recipe(
    *,
    base: Mapping[str, Any],
    model: str,
    prompt: str,
    negative_prompt: str,
    regions: Sequence[Region],
    seed: int,
    config: SamplingConfig,
    scale: float,
    conditions: Sequence[Mapping[str, Any]] = (),
    concepts: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything a picture depends on, as plain JSON data.

    Args:
        base: Name and fingerprint of the base model.
        model: The adapter as the user named it, with its digest; "base" for none.
        prompt: The global prompt.
        negative_prompt: The global negative prompt.
        regions: The layout; masks are written out as PNG in base 64.
        seed: Of this picture.
        config: Sampling options.
        scale: Factor on the low-rank updates.
        conditions: Names, digests and weight of each picture condition.
        concepts: Adapters that regions carry, as the user named them, with their digests.
    """
    return {
        "format": RECIPE_VERSION,
        "base": dict(base),
        "model": model,
        "concepts": list(concepts),
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "regions": [_region_data(region) for region in regions],
        "seed": seed,
        "scale": scale,
        "sampling": {key: value for key, value in asdict(config).items() if key != "batch_size"},
        "conditions": [dict(condition) for condition in conditions],
    }


def _region_data(region: Region) -> dict[str, Any]:
    data: dict[str, Any] = {
        "prompt": region.prompt,
        "negative_prompt": region.negative_prompt,
        "weight": region.weight,
        "soft_edge": region.soft_edge,
        "condition_weight": region.condition_weight,
    }
    if region.box is not None:
        data["box"] = list(region.box)
    if region.mask is not None:
        buffer = io.BytesIO()
        values = (region.mask.cpu().numpy() * 255).round().astype(np.uint8)
        Image.fromarray(values, mode="L").save(buffer, "PNG", optimize=True)
        data["mask"] = base64.b64encode(buffer.getvalue()).decode("ascii")
    if region.adapter is not None:
        data["concepts"] = [concept.ref for concept in region.adapter.vocabulary]
    return data


def save_picture(picture: Image.Image, path: Path, recipe_data: Mapping[str, Any] | None = None) -> None:
    """Write a PNG, whole or not at all, with its recipe under ``mos.recipe``."""
    info = PngInfo()
    if recipe_data is not None:
        info.add_itxt(RECIPE_KEY, json.dumps(recipe_data, sort_keys=True))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        picture.save(unfinished, "PNG", pnginfo=info)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read back the recipe of a picture drawn by :func:`save_picture`.

    Raises:
        NotFoundError: If there is no such file.
        BadInputError: If it is no PNG, carries no recipe, or one of a newer format.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such picture")
    try:
        with Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(RECIPE_KEY)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise BadInputError(f"{path}: cannot be read as a picture ({error})") from None
    if text is None:
        raise BadInputError(f"{path}: carries no recipe; only pictures drawn by mos sample do")
    data: dict[str, Any] = json.loads(text)
    if data.get("format") != RECIPE_VERSION:
        raise BadInputError(
            f"{path}: its recipe has format {data.get('format')}, this version of mos reads {RECIPE_VERSION}; "
            "update mos"
        )
    return data


def picture_grid(pictures: Sequence[Image.Image], *, columns: int, gap: int = 2) -> Image.Image:
    """Lay equally large pictures out in rows on white.

    Args:
        pictures: At least one.
        columns: Pictures in a row.
        gap: Pixels between pictures.
    """
    width, height = pictures[0].size
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        grid.paste(picture, (column * (width + gap), row * (height + gap)))
    return grid
