"""Regions that carry their own adapters: each cell gets the low-rank updates of its own region only.

Several owners' concepts share one base in memory. Inside a region every tuned linear of the U-Net adds that
concept's `up @ down`; keys and values of a region's prompt get them too. Nothing is lost to fusion, so this
is the upper bound that fused models are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter, check_adapter
from mos.edlora.lora import LowRank
from mos.layers import linear_module
from mos.sampling.attention import AttentionState

Scale = float | Mapping[str, float]


def component_scale(scale: Scale, component: str) -> float:
    """The factor of one component; those a mapping leaves out keep 1."""
    return scale.get(component, 1.0) if isinstance(scale, Mapping) else scale


def text_part(adapter: Adapter) -> Adapter:
    """The adapter without its U-Net updates: what encoding a prompt needs."""
    linears = {name: updates for name, updates in adapter.linears.items() if name != "unet"}
    return Adapter(linears=linears, vocabulary=adapter.vocabulary)


@contextmanager
def region_updates(base: BaseModel, state: AttentionState, scale: Scale = 1.0) -> Iterator[None]:
    """Hook the U-Net so that each region's cells see its own adapter; the hooks are gone afterwards.

    Raises:
        BadInputError: If a region's adapter does not fit the base; nothing has been changed then.
    """
    adapters = [region.adapter for region in state.geometry.regions]
    for adapter in adapters:
        if adapter is not None:
            check_adapter(base, adapter)
    factor = component_scale(scale, "unet")
    handles = []
    try:
        for name in _tuned_linears(adapters):
            update = _RegionUpdate(name, adapters, base.unet, state, factor)
            handles.append(linear_module(base.unet, name).register_forward_hook(update))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tuned_linears(adapters: Sequence[Adapter | None]) -> list[str]:
    names: dict[str, None] = {}
    for adapter in adapters:
        if adapter is not None:
            names.update(dict.fromkeys(adapter.linears.get("unet", {})))
    return list(names)


class _RegionUpdate:
    """The forward hook of one linear: all regions' updates side by side, masked by column."""

    def __init__(
        self, name: str, adapters: Sequence[Adapter | None], unet: Any, state: AttentionState, factor: float
    ) -> None:
        parent, _, leaf = name.rpartition(".")
        self._is_prompt_side = leaf in ("to_k", "to_v") and bool(linear_module(unet, parent).is_cross_attention)
        self._state = state
        updates = [
            (segment, adapter.linears["unet"][name])
            for segment, adapter in enumerate(adapters, start=1)
            if adapter is not None and name in adapter.linears.get("unet", {})
        ]
        weight = linear_module(unet, name).weight
        assert isinstance(weight, Tensor)
        self._down = torch.cat([update.down for _, update in updates]).to(weight)
        self._up = (torch.cat([update.up for _, update in updates], dim=1) * factor).to(weight)
        self._segment_of_column = _columns(updates).to(weight.device)
        self._by_cells: dict[int, Tensor] = {}

    def __call__(self, module: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del module
        rows = args[0]
        spatial = rows.shape[2:] if rows.ndim == 4 else None
        if spatial is not None:
            rows = rows.flatten(2).transpose(1, 2)
        change = ((rows @ self._down.T) * self._shares(rows)) @ self._up.T
        if spatial is not None:
            change = change.transpose(1, 2).reshape(output.shape)
        return output + change

    def _shares(self, rows: Tensor) -> Tensor:
        """How much of each column's update each row gets, broadcastable to [batch, rows, columns]."""
        columns = self._segment_of_column
        if self._state.alone is not None and not self._is_prompt_side:
            return (columns == self._state.alone).to(rows.dtype)
        if self._is_prompt_side:
            segments = torch.arange(self._state.geometry.num_segments, device=rows.device)
            own = (segments[:, None] == columns[None, :]).to(rows.dtype)
            return own.repeat(rows.shape[0] // len(segments), 1)[:, None, :]
        count = rows.shape[1]
        if count not in self._by_cells:
            self._by_cells[count] = self._state.geometry.weights[count][columns].T.to(rows.dtype)
        return self._by_cells[count]


def _columns(updates: Sequence[tuple[int, LowRank]]) -> Tensor:
    return torch.cat([torch.full((update.rank,), segment) for segment, update in updates])
