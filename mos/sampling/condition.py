"""Picture conditions (sketch, key pose) by T2I-Adapters, each with a global weight and one a region.

A T2I-Adapter (arXiv:2302.08453) turns a picture into one feature map a level of the U-Net's down path,
added there; the maps do not depend on the timestep and are computed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mos.errors import BadInputError, NotFoundError
from mos.sampling.geometry import RegionGeometry


class ConditionError(BadInputError):
    """Raised when an adapter's feature maps do not fit the U-Net, or its picture does not fit the adapter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """One picture condition.

    Attributes:
        adapter: A diffusers T2IAdapter.
        picture: [channels, height, width] in 0..1, as large as the picture to draw.
        weight: Strength outside the regions; inside one it is multiplied by its `condition_weight`.
        until: Fraction of the steps, from the first, during which the condition acts.
    """

    adapter: Any
    picture: Tensor
    weight: float = 1.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.picture.ndim != 3:
            raise ConditionError(
                f"condition picture has shape {list(self.picture.shape)}, expected [channels, height, width]"
            )
        if self.weight < 0 or not 0 <= self.until <= 1:
            raise ConditionError(f"condition weight {self.weight} and until {self.until}: expected 0 or more, and 0..1")


def condition_picture(picture: Image.Image, channels: int, *, width: int, height: int) -> Tensor:
    """Resize a sketch or pose to the picture's size: [channels, height, width] in 0..1."""
    mode = "L" if channels == 1 else "RGB"
    resized = picture.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255.0)
    return values[None] if channels == 1 else values.permute(2, 0, 1)


def load_condition(adapter: Path, picture: Path, weight: float, *, width: int, height: int) -> Condition:
    """Open a T2I-Adapter in the diffusers layout and the picture it is to follow.

    Args:
        adapter: Folder with `config.json` and safetensors weights.
        picture: Sketch or pose, white lines on black as the adapter was trained.
        weight: Strength outside the regions.
        width: Of the picture to draw, in pixels.
        height: Of the picture to draw, in pixels.

    Raises:
        NotFoundError: If there is no such folder or picture.
        ConditionError: If one of them cannot be read.
    """
    if not picture.is_file():
        raise NotFoundError(f"condition picture {picture}: no such file")
    model = load_adapter(adapter)
    try:
        with Image.open(picture) as opened:
            values = condition_picture(opened, int(model.config.in_channels), width=width, height=height)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ConditionError(f"condition picture {picture}: cannot be read ({error})") from None
    return Condition(adapter=model, picture=values, weight=weight)


def load_adapter(folder: Path) -> Any:
    """Open a T2I-Adapter in the diffusers layout, in float32, ready to run.

    Raises:
        NotFoundError: If there is no such folder.
        ConditionError: If it cannot be read.
    """
    from diffusers import T2IAdapter

    if not (folder / "config.json").is_file():
        raise NotFoundError(f"condition adapter {folder}: no such T2I-Adapter; expected a folder with config.json")
    try:
        model = T2IAdapter.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConditionError(f"condition adapter {folder}: cannot be loaded ({reason})") from error
    return model.float().eval()


def adapter_sha256(folder: Path) -> str:
    """Digest of a T2I-Adapter's weights."""
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@torch.no_grad()
def condition_features(
    conditions: Sequence[Condition], geometry: RegionGeometry, unet: Any, *, progress: float
) -> list[Tensor] | None:
    """Sum the feature maps of all conditions still acting, weighted cell by cell.

    Args:
        conditions: Any number.
        geometry: Gives each region's share in each cell.
        unet: Whose down blocks the maps must fit.
        progress: Fraction of the steps already done.

    Returns:
        One [1, channels, height, width] a down block, or None when no condition acts.

    Raises:
        ConditionError: If an adapter makes other feature maps than the U-Net has.
    """
    total: list[Tensor] | None = None
    for condition in conditions:
        if condition.weight == 0 or progress >= condition.until > 0 or condition.until == 0:
            continue
        features = _weighted_features(condition, geometry, unet)
        total = features if total is None else [a + b for a, b in zip(total, features, strict=True)]
    return total


def _weighted_features(condition: Condition, geometry: RegionGeometry, unet: Any) -> list[Tensor]:
    condition.adapter.to(unet.device)
    parameter = next(condition.adapter.parameters())
    features = condition.adapter(condition.picture[None].to(parameter))
    channels = [feature.shape[1] for feature in features]
    if channels != list(unet.config.block_out_channels):
        raise ConditionError(
            f"condition adapter makes feature maps of {channels} channels, the base needs "
            f"{list(unet.config.block_out_channels)}; use an adapter trained for this base"
        )
    return [feature * _weight_map(condition, geometry, feature) for feature in features]


def _weight_map(condition: Condition, geometry: RegionGeometry, feature: Tensor) -> Tensor:
    height, width = feature.shape[2:]
    shares = geometry.weights.get(height * width)
    if shares is None:
        raise ConditionError(
            f"condition adapter makes a {width}x{height} feature map, which the U-Net does not have here; "
            "use an adapter with the base's downscale factor"
        )
    strengths = torch.tensor([1.0, *(region.condition_weight for region in geometry.regions)]) * condition.weight
    return (strengths.to(shares) @ shares).view(1, 1, height, width).to(feature)
