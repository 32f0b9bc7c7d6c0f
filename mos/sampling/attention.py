"""Regional cross-attention: one batched pass in which every cell attends to its own region's prompt.

Mix-of-Show's regionally controllable sampling (arXiv:2305.18292, section 3.3) attends region by region in a
loop. Here the queries of all regions are gathered into one padded batch, attend once, and are gathered
back, so a cell is computed once for every prompt it belongs to. Keys and values of a prompt do not depend
on the timestep: they are computed at the first step and kept for the others. Without gradients the fused
kernel is the faster one on CPUs too, so sampling uses it throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mos.edlora.attention import (
    LayerwiseProcessor,
    attention_processors,
    join_heads,
    layer_indices,
    split_heads,
)
from mos.sampling.geometry import RegionGeometry, SegmentCells


@dataclass(kw_only=True, eq=False)
class AttentionState:
    """What all attention modules share during one denoising run.

    Attributes:
        segments: One [batch, layers, tokens, dim] encoding a segment: the global prompt, then the regions.
        geometry: Where each segment lies.
        is_guarded: Whether self-attention is limited to cells that share a segment.
        alone: The only segment that is being drawn, over all cells there are; None while all are.
        keys: Layer -> [batch, segments, tokens, channels].
        values: Layer -> the same.
        masks: Number of cells -> [cells, cells] bool, who may look at whom in self-attention while guarded.
    """

    segments: Sequence[Tensor]
    geometry: RegionGeometry
    is_guarded: bool = False
    alone: int | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)

    def context(self, layer: int) -> Tensor:
        """[batch * segments, tokens, dim] of one layer."""
        return torch.stack([segment[:, layer] for segment in self.segments], dim=1).flatten(0, 1)

    def self_attention_mask(self, num_cells: int) -> Tensor | None:
        """The mask that keeps regions from looking at each other, None while there is no guard."""
        if not self.is_guarded or self.alone is not None:
            return None
        if num_cells not in self.masks:
            self.masks[num_cells] = self.geometry.allowed(num_cells)
        return self.masks[num_cells]


def regional_attention(query: Tensor, key: Tensor, value: Tensor, cells: SegmentCells, num_heads: int) -> Tensor:
    """Let every cell attend to the prompts of its segments, and mix the results by share.

    Args:
        query: [batch, cells, channels].
        key: [batch, segments, tokens, channels].
        value: [batch, segments, tokens, channels].
        cells: Which cell attends to which segment.
        num_heads: Heads the channels are split into.

    Returns:
        [batch, cells, channels]; equal to attending all cells to every segment apart and averaging by share.
    """
    batch, num_cells, channels = query.shape
    if len(cells.used) < key.shape[1]:
        key, value = key[:, cells.used], value[:, cells.used]
    segments, longest = cells.gather.shape
    if segments == 1:
        picked = query
    else:
        picked = query.index_select(1, cells.gather.flatten()).view(batch * segments, longest, channels)
    attended = join_heads(
        scaled_dot_product_attention(
            split_heads(picked, num_heads),
            split_heads(key.flatten(0, 1), num_heads),
            split_heads(value.flatten(0, 1), num_heads),
        )
    )
    if segments == 1:
        return attended
    attended = attended.reshape(batch, segments * longest, channels)
    most = cells.back.shape[1]
    if most == 1:
        return attended.index_select(1, cells.back.flatten())
    gathered = attended.index_select(1, cells.back.flatten()).view(batch, num_cells, most, channels)
    return torch.einsum("bnmc,nm->bnc", gathered, cells.weights.to(gathered.dtype))


class RegionalProcessor(LayerwiseProcessor):
    """Runs one attention module of a denoising run with regions (or none)."""

    def __init__(self, layer: int | None, state: AttentionState) -> None:
        super().__init__(layer)
        self.state = state

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend; a transformer block's [batch, cells, channels] in and out."""
        del attention_mask  # a U-Net of this family passes none
        if self.layer is None or encoder_hidden_states is None:
            mask = self.state.self_attention_mask(hidden_states.shape[1])
            return super().__call__(attn, hidden_states, None, mask, temb)
        key, value = self._keys_and_values(attn, self.layer)
        query = attn.to_q(hidden_states)
        if self.state.alone is not None:
            attended = join_heads(
                scaled_dot_product_attention(
                    split_heads(query, attn.heads),
                    split_heads(key[:, self.state.alone], attn.heads),
                    split_heads(value[:, self.state.alone], attn.heads),
                )
            )
        else:
            cells = self.state.geometry.cells[query.shape[1]]
            attended = regional_attention(query, key, value, cells, attn.heads)
        output: Tensor = attn.to_out[1](attn.to_out[0](attended))
        return output / attn.rescale_output_factor if attn.rescale_output_factor != 1 else output

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend in self-attention; [batch, heads, tokens, dim] in and out."""
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def _keys_and_values(self, attn: Any, layer: int) -> tuple[Tensor, Tensor]:
        state = self.state
        if layer not in state.keys:
            context = state.context(layer).to(attn.to_k.weight.dtype)
            shape = (-1, len(state.segments))
            state.keys[layer] = attn.to_k(context).unflatten(0, shape)
            state.values[layer] = attn.to_v(context).unflatten(0, shape)
        return state.keys[layer], state.values[layer]


@contextmanager
def regional_processors(unet: Any, state: AttentionState) -> Iterator[None]:
    """Install the processors of one denoising run; those found are put back, also on exceptions."""
    with attention_processors(unet, [RegionalProcessor(layer, state) for layer in layer_indices(unet)]):
        yield
