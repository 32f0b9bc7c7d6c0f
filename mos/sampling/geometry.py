"""A layout laid onto every feature map of the U-Net: who attends to which prompt, ready to gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mos.sampling.region import MapSize, Region, blend_weights, check_regions

Window = tuple[slice, slice]
"""Rows and columns of the latents."""
_LEAST_SHARE = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentCells:
    """Gather lists that bring each cell of a feature map to the prompts it attends to, and back.

    A segment is the global prompt (0) or a region (1..). Rows shorter than the longest are padded with
    cell 0, whose result nobody gathers back.

    Attributes:
        used: [used segments] indices of the segments that have cells on this map.
        gather: [used segments, longest] cells of each.
        back: [cells, most segments a cell has] positions in the flattened `gather`.
        weights: [cells, most] the share of each; 0 where `back` is padding.
    """

    used: Tensor
    gather: Tensor
    back: Tensor
    weights: Tensor


def segment_cells(weights: Tensor) -> SegmentCells:
    """Build the gather lists from shares [segments, cells] whose columns sum to 1."""
    is_member = weights > _LEAST_SHARE
    used = is_member.any(dim=1).nonzero().flatten()
    is_member, shares = is_member[used], weights[used]
    longest = int(is_member.sum(dim=1).max())
    gather = torch.zeros(len(used), longest, dtype=torch.long)
    for row, members in enumerate(is_member):
        cells = members.nonzero().flatten()
        gather[row, : len(cells)] = cells
    position = is_member.cumsum(dim=1) - 1 + longest * torch.arange(len(used))[:, None]
    most = int(is_member.sum(dim=0).max())
    order = is_member.logical_not().int().argsort(dim=0, stable=True)[:most]
    chosen = is_member.gather(0, order)
    back = position.gather(0, order).masked_fill(~chosen, 0).T.contiguous()
    shares = shares.gather(0, order).masked_fill(~chosen, 0.0)
    return SegmentCells(used=used, gather=gather, back=back, weights=(shares / shares.sum(dim=0)).T.contiguous())


@dataclass(frozen=True, kw_only=True, eq=False)
class RegionGeometry:
    """The layout at every feature map size, found again by the number of cells.

    Attributes:
        regions: The layout; empty for plain sampling.
        weights: Number of cells -> [1 + regions, cells], the share of each segment in each cell.
        cells: Number of cells -> the gather lists.
    """

    regions: tuple[Region, ...] = ()
    weights: dict[int, Tensor] = field(default_factory=dict)
    cells: dict[int, SegmentCells] = field(default_factory=dict)

    @property
    def num_segments(self) -> int:
        """The global prompt and every region."""
        return 1 + len(self.regions)

    def allowed(self, num_cells: int) -> Tensor:
        """[cells, cells]: which cells share a segment, so that one may look at the other in self-attention."""
        member = (self.weights[num_cells] > _LEAST_SHARE).float()
        return (member.T @ member) > 0


def segment_windows(shares: Tensor, *, align: int) -> list[Window]:
    """The smallest windows that hold all cells of each segment, widened to multiples of `align`.

    Args:
        shares: [segments, height, width], as in `RegionGeometry.weights`.
        align: Latent cells to a cell of the coarsest feature map, so that a window has whole cells there.

    Returns:
        One window a segment; an empty one for a segment without a cell.
    """
    windows = []
    for share in shares > _LEAST_SHARE:
        spans = []
        for axis in (1, 0):
            cells = share.any(dim=axis).nonzero().flatten()
            first, last = (int(cells[0]), int(cells[-1]) + 1) if len(cells) else (0, 0)
            spans.append(slice(first // align * align, min(-(-last // align) * align, len(share.any(dim=axis)))))
        windows.append((spans[0], spans[1]))
    return windows


def feature_maps(unet: Any, latent_size: MapSize) -> list[MapSize]:
    """Height and width of the feature maps of every level of a U-Net, finest first."""
    sizes = [latent_size]
    for _ in range(len(unet.config.block_out_channels) - 1):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def cross_attention_maps(unet: Any, latent_size: MapSize) -> list[MapSize]:
    """The feature maps that have cross-attention; the middle block counts with the coarsest level."""
    sizes = feature_maps(unet, latent_size)
    has_cross = ["CrossAttn" in name for name in unet.config.down_block_types]
    if "CrossAttn" in (unet.config.mid_block_type or ""):
        has_cross[-1] = True
    return [size for size, cross in zip(sizes, has_cross, strict=True) if cross]


def lay_out(unet: Any, regions: Sequence[Region], latent_size: MapSize, device: torch.device) -> RegionGeometry:
    """Lay regions onto every feature map of a U-Net.

    Raises:
        RegionError: As :func:`check_regions`.
    """
    check_regions(regions, cross_attention_maps(unet, latent_size))
    weights = {size[0] * size[1]: blend_weights(regions, size) for size in feature_maps(unet, latent_size)}
    cells = {count: _moved(segment_cells(shares), device) for count, shares in weights.items()}
    return RegionGeometry(
        regions=tuple(regions),
        weights={count: shares.to(device) for count, shares in weights.items()},
        cells=cells,
    )


def _moved(cells: SegmentCells, device: torch.device) -> SegmentCells:
    return SegmentCells(
        used=cells.used.to(device),
        gather=cells.gather.to(device),
        back=cells.back.to(device),
        weights=cells.weights.to(device),
    )
