"""Regions of a picture: boxes and masks, checked on entry and laid onto feature maps of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from mos.errors import BadInputError

if TYPE_CHECKING:
    from mos.edlora.adapter import Adapter

Box = tuple[float, float, float, float]
MapSize = tuple[int, int]
MAX_REGIONS = 16
_ROUNDING_SLACK = 1e-6  # 0.1 * 30 is 3.0000000000000004: a cell edge that is met must count as met


class RegionError(BadInputError):
    """Raised when a region's box, mask or number cannot be laid onto the picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """A part of the picture with a prompt of its own.

    Attributes:
        prompt: What is to be drawn inside.
        box: x0, y0, x1, y1 as fractions of width and height; exactly one of box and mask is given.
        mask: [height, width] at any resolution, 0 outside to 1 inside.
        negative_prompt: What guidance moves away from inside this region.
        weight: Share in overlaps, relative to the other regions there.
        soft_edge: Width of the inner border over which the region fades in, as a fraction of the picture.
        adapter: A concept's own, unfused adapter, active inside this region only.
        condition_weight: Strength of the picture conditions (sketch, key pose) inside this region.
    """

    prompt: str
    box: Box | None = None
    mask: torch.Tensor | None = None
    negative_prompt: str = ""
    weight: float = 1.0
    soft_edge: float = 0.0
    adapter: Adapter | None = None
    condition_weight: float = 1.0

    def __post_init__(self) -> None:
        if (self.box is None) == (self.mask is None):
            raise RegionError(f"region {self.prompt!r}: give either a box or a mask, not both or neither")
        if not (math.isfinite(self.weight) and self.weight > 0.0):
            raise RegionError(f"region {self.prompt!r}: weight is {self.weight}, expected above 0")
        if not 0.0 <= self.soft_edge <= 0.5:
            raise RegionError(f"region {self.prompt!r}: soft_edge is {self.soft_edge}, expected 0..0.5")
        if not (math.isfinite(self.condition_weight) and self.condition_weight >= 0.0):
            raise RegionError(
                f"region {self.prompt!r}: condition_weight is {self.condition_weight}, expected 0 or more"
            )
        if self.box is not None:
            _check_box(self.box, self.prompt)
        if self.mask is not None:
            _check_mask(self.mask, self.prompt)

    @property
    def place(self) -> str:
        """The box or mask as a person wrote it, for messages and recipes."""
        if self.box is not None:
            return "box " + ",".join(f"{edge:g}" for edge in self.box)
        assert self.mask is not None
        return f"mask {self.mask.shape[1]}x{self.mask.shape[0]}"


def box_from_numbers(numbers: Sequence[float], *, width: int, height: int, prompt: str = "") -> Box:
    """Read x0, y0, x1, y1 as fractions, or as pixels as soon as one of them is above 1.

    Args:
        numbers: Four numbers.
        width: Picture width in pixels.
        height: Picture height in pixels.
        prompt: Names the region in messages.

    Raises:
        RegionError: If there are not four numbers, or the box is outside, reversed or empty.
    """
    if len(numbers) != 4:
        raise RegionError(
            f"region {prompt!r}: {len(numbers)} numbers after @, expected four: x0,y0,x1,y1 "
            "as fractions (0,0,0.5,1) or pixels (0,0,32,64)"
        )
    x0, y0, x1, y1 = (float(number) for number in numbers)
    if all(number.is_integer() for number in (x0, y0, x1, y1)) and max(x0, y0, x1, y1) > 1.0:
        if max(x0, x1) > width or max(y0, y1) > height:
            raise RegionError(
                f"region {prompt!r}: pixel box {x0:g},{y0:g},{x1:g},{y1:g} lies outside the {width}x{height} picture"
            )
        x0, y0, x1, y1 = x0 / width, y0 / height, x1 / width, y1 / height
    box = (x0, y0, x1, y1)
    _check_box(box, prompt)
    return box


def _check_box(box: Box, prompt: str) -> None:
    written = ",".join(f"{edge:g}" for edge in box)
    if len(box) != 4 or not all(math.isfinite(edge) for edge in box):
        raise RegionError(f"region {prompt!r}: box {written} is not four finite numbers x0,y0,x1,y1")
    x0, y0, x1, y1 = box
    if min(box) < 0.0 or max(box) > 1.0:
        raise RegionError(
            f"region {prompt!r}: box {written} lies outside the picture; "
            "fractions run from 0 to 1 and pixels are whole numbers"
        )
    if x0 > x1 or y0 > y1:
        raise RegionError(f"region {prompt!r}: box {written} is reversed; write x0,y0,x1,y1 with x0<x1, y0<y1")
    if x0 == x1 or y0 == y1:
        raise RegionError(f"region {prompt!r}: box {written} is empty; write x0,y0,x1,y1 with x0<x1, y0<y1")


def _check_mask(mask: torch.Tensor, prompt: str) -> None:
    if mask.ndim != 2 or mask.numel() == 0:
        raise RegionError(f"region {prompt!r}: mask has shape {list(mask.shape)}, expected one channel [height, width]")
    if not torch.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1:
        raise RegionError(f"region {prompt!r}: mask has values outside 0..1")
    if mask.max() == 0:
        raise RegionError(f"region {prompt!r}: mask is empty: no pixel is set")


def coverage(region: Region, size: MapSize) -> torch.Tensor:
    """How much of each cell of a feature map belongs to a region.

    A box takes the cells that lie wholly inside it (start rounded up, end rounded down), and where it is as
    long as a cell but contains none, the nearest; a mask of only zeros and ones takes the cells it fills, or
    if it fills none those it half fills; a mask with grey values is averaged over each cell.

    Returns:
        [height, width] float32 in 0..1.
    """
    if region.box is not None:
        return _box_coverage(region.box, size, region.soft_edge)
    assert region.mask is not None
    return _mask_coverage(region.mask.float(), size, region.soft_edge)


def _box_coverage(box: Box, size: MapSize, soft_edge: float) -> torch.Tensor:
    height, width = size
    x0, y0, x1, y1 = box
    across = _span_coverage(x0, x1, width, soft_edge)
    down = _span_coverage(y0, y1, height, soft_edge)
    return torch.minimum(down[:, None], across[None, :])


def _span_coverage(start: float, end: float, count: int, soft_edge: float) -> torch.Tensor:
    """One axis: 1 on the cells wholly between start and end, fading to 0 at edges inside the picture."""
    first, last = _cells_between(start, end, count)
    inside = torch.zeros(count)
    inside[first:last] = 1.0
    if soft_edge == 0.0:
        return inside
    centres = (torch.arange(count) + 0.5) / count
    fade = torch.ones(count)
    if start > 0.0:
        fade = torch.minimum(fade, (centres - start) / soft_edge)
    if end < 1.0:
        fade = torch.minimum(fade, (end - centres) / soft_edge)
    return inside * fade.clamp(0.0, 1.0)


def _cells_between(start: float, end: float, count: int) -> tuple[int, int]:
    """Start rounded up and end down; a box of at least a cell's length that straddles two keeps the nearest.

    Without the second rule the middle third of a picture would vanish on a map four cells wide.
    """
    first = math.ceil(start * count - _ROUNDING_SLACK)
    last = math.floor(end * count + _ROUNDING_SLACK)
    if last <= first and (end - start) * count >= 1.0 - _ROUNDING_SLACK:
        first, last = math.floor(start * count + 0.5), math.floor(end * count + 0.5)
    return first, max(first, last)


def _mask_coverage(mask: torch.Tensor, size: MapSize, soft_edge: float) -> torch.Tensor:
    is_hard = bool(((mask == 0) | (mask == 1)).all())
    if soft_edge > 0.0:
        mask = _fade_inwards(mask, soft_edge)
    share = F.adaptive_avg_pool2d(mask[None, None], size)[0, 0]
    if is_hard:
        filled = F.adaptive_avg_pool2d((mask > 0).float()[None, None], size)[0, 0]
        threshold = 1.0 - _ROUNDING_SLACK if filled.max() >= 1.0 - _ROUNDING_SLACK else 0.5
        return torch.where(filled >= threshold, share, torch.zeros_like(share))
    return share


def _fade_inwards(mask: torch.Tensor, soft_edge: float) -> torch.Tensor:
    """Box-blur the mask and keep only what lies inside, so that its border fades instead of growing."""
    radius = max(1, round(soft_edge * max(mask.shape) / 2))
    padded = F.pad(mask[None, None], (radius,) * 4, mode="replicate")
    blurred = F.avg_pool2d(padded, 2 * radius + 1, stride=1)[0, 0]
    return mask * (2.0 * blurred - 1.0).clamp(0.0, 1.0)


def blend_weights(regions: Sequence[Region], size: MapSize) -> torch.Tensor:
    """The share of the global prompt and of every region in every cell of a feature map.

    Where regions overlap they are averaged by weight; where none lies the global prompt keeps all of it;
    in a soft edge both are mixed.

    Returns:
        [1 + regions, height * width] float32, each column summing to 1; row 0 is the global prompt.
    """
    height, width = size
    if not regions:
        return torch.ones(1, height * width)
    covers = torch.stack([coverage(region, size).flatten() for region in regions])
    claims = covers * torch.tensor([[region.weight] for region in regions])
    taken = covers.amax(dim=0)
    shares = claims / claims.sum(dim=0).clamp_min(torch.finfo(torch.float32).tiny) * taken
    return torch.cat([(1.0 - shares.sum(dim=0, keepdim=True)).clamp_min(0.0), shares])


def check_regions(regions: Sequence[Region], maps: Sequence[MapSize], *, limit: int = MAX_REGIONS) -> None:
    """Refuse layouts that some cross-attention layer could not see.

    Args:
        regions: The layout.
        maps: Heights and widths of the feature maps that have cross-attention.
        limit: Most regions in one picture.

    Raises:
        RegionError: If there are too many regions, or one covers no whole cell of the coarsest map.
    """
    if len(regions) > limit:
        raise RegionError(f"{len(regions)} regions, at most {limit} in one picture; merge or drop some")
    height, width = min(maps, key=lambda size: size[0] * size[1])
    for number, region in enumerate(regions, start=1):
        if coverage(region, (height, width)).max() > 0:
            continue
        raise RegionError(
            f"region {number} {region.prompt!r}: {region.place} is too small: it covers no whole cell of the "
            f"coarsest {width}x{height} feature map; widen it to contain one cell "
            f"({1 / width:g} x {1 / height:g} of the picture, edges at multiples of that)"
        )
