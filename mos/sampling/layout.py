"""Writing regions down: `"prompt | negative @ x0,y0,x1,y1"` on a command line, or a TOML file for a scene."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from mos.errors import NotFoundError
from mos.sampling.region import Region, RegionError, box_from_numbers

_REGION_KEYS = frozenset({"prompt", "negative_prompt", "box", "mask", "weight", "soft_edge", "condition_weight"})
_SCENE_KEYS = frozenset({"prompt", "negative_prompt", "region"})
_MAX_MASK_PIXELS = 64_000_000


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A repeatable scene.

    Attributes:
        prompt: The global prompt; empty when the file leaves it to the caller.
        negative_prompt: The global negative prompt.
        regions: In the order written.
    """

    prompt: str = ""
    negative_prompt: str = ""
    regions: tuple[Region, ...] = ()


def parse_region(text: str, *, width: int, height: int, soft_edge: float = 0.0) -> Region:
    """Read one region: `prompt @ x0,y0,x1,y1`, `prompt @ mask.png`, either with `| negative` before the @.

    Args:
        text: What a person typed.
        width: Picture width in pixels; boxes with a number above 1 are pixels.
        height: Picture height in pixels.
        soft_edge: As in :class:`Region`.

    Raises:
        RegionError: If there is no @, no prompt, or no box or mask after the @.
    """
    words, at, place = text.rpartition("@")
    prompt, _, negative = (part.strip() for part in words.partition("|"))
    place = place.strip()
    if not at or not prompt or not place:
        raise RegionError(f'region {text!r}: expected "prompt @ x0,y0,x1,y1" or "prompt @ mask.png"')
    if place.lower().endswith(".png"):
        mask = read_mask(Path(place))
        return Region(prompt=prompt, mask=mask, negative_prompt=negative, soft_edge=soft_edge)
    try:
        numbers = [float(number) for number in place.split(",")]
    except ValueError:
        raise RegionError(f"region {prompt!r}: {place!r} is neither x0,y0,x1,y1 nor a .png mask") from None
    box = box_from_numbers(numbers, width=width, height=height, prompt=prompt)
    return Region(prompt=prompt, box=box, negative_prompt=negative, soft_edge=soft_edge)


def read_mask(path: Path) -> torch.Tensor:
    """Read a PNG as a mask: its transparency if it has any, else its brightness.

    Returns:
        [height, width] float32 in 0..1.

    Raises:
        NotFoundError: If there is no such file.
        RegionError: If the file is no picture, or a very large one.
    """
    if not path.is_file():
        raise NotFoundError(f"mask {path}: no such file")
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > _MAX_MASK_PIXELS:
                raise RegionError(f"mask {path}: {picture.width}x{picture.height} pixels is too large for a mask")
            return _mask_values(ImageOps.exif_transpose(picture))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RegionError(f"mask {path}: cannot be read as a picture ({error})") from None


def _mask_values(picture: Image.Image) -> torch.Tensor:
    if picture.mode in ("LA", "RGBA", "PA"):
        alpha = np.asarray(picture.getchannel("A"), dtype=np.float32) / 255.0
        if alpha.min() < 1.0:
            return torch.from_numpy(alpha)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 65535.0)
    return torch.from_numpy(np.asarray(picture.convert("L"), dtype=np.float32) / 255.0)


def read_layout(path: Path, *, width: int, height: int) -> Layout:
    """Read a scene from TOML: `prompt`, `negative_prompt` and a `[[region]]` table for each region.

    A region has `prompt` and either `box = [x0, y0, x1, y1]` or `mask = "file.png"` (relative to the layout
    file), and optionally `negative_prompt`, `weight`, `soft_edge`, `condition_weight`.

    Raises:
        NotFoundError: If there is no such file.
        RegionError: If it is no TOML, has an unknown key or a value of the wrong kind; names the region.
    """
    if not path.is_file():
        raise NotFoundError(f"layout {path}: no such file")
    try:
        scene = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RegionError(f"layout {path}: not valid TOML ({error})") from None
    _refuse_unknown(scene, _SCENE_KEYS, f"layout {path}")
    tables = scene.get("region", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RegionError(f"layout {path}: write each region as a [[region]] table")
    regions = tuple(
        _region_from_table(table, f"layout {path}, region {number}", path.parent, width=width, height=height)
        for number, table in enumerate(tables, start=1)
    )
    return Layout(
        prompt=_text(scene, "prompt", f"layout {path}"),
        negative_prompt=_text(scene, "negative_prompt", f"layout {path}"),
        regions=regions,
    )


def _region_from_table(table: Mapping[str, object], where: str, folder: Path, *, width: int, height: int) -> Region:
    _refuse_unknown(table, _REGION_KEYS, where)
    prompt = _text(table, "prompt", where)
    if not prompt:
        raise RegionError(f"{where}: has no prompt")
    box = mask = None
    if "box" in table:
        numbers = table["box"]
        if not isinstance(numbers, list) or not all(_is_number(number) for number in numbers):
            raise RegionError(f"{where}: box is {numbers!r}, expected four numbers [x0, y0, x1, y1]")
        box = box_from_numbers(numbers, width=width, height=height, prompt=prompt)
    if "mask" in table:
        mask = read_mask(folder / _text(table, "mask", where))
    return Region(
        prompt=prompt,
        box=box,
        mask=mask,
        negative_prompt=_text(table, "negative_prompt", where),
        weight=_number(table, "weight", 1.0, where),
        soft_edge=_number(table, "soft_edge", 0.0, where),
        condition_weight=_number(table, "condition_weight", 1.0, where),
    )


def _refuse_unknown(table: Mapping[str, object], known: frozenset[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise RegionError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _text(table: Mapping[str, object], key: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise RegionError(f"{where}: {key} is {value!r}, expected a text in quotes")
    return value.strip()


def _number(table: Mapping[str, object], key: str, default: float, where: str) -> float:
    value = table.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RegionError(f"{where}: {key} is {value!r}, expected a number")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
