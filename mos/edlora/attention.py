"""Attention of the U-Net where cross-attention layer i attends to its own encoding of the prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mos.layers import attention_names

_NARROW_HEAD = 64
_MOST_SCORES = 1 << 24


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    On a CPU with narrow heads three plain operations beat the fused kernel; elsewhere the fused kernel
    runs. Both give the same result up to rounding.

    Args:
        query: [batch, heads, queries, head_dim].
        key: [batch, heads, keys, head_dim].
        value: [batch, heads, keys, head_dim].
        mask: added to the scores, broadcastable to [batch, heads, queries, keys].

    Returns:
        [batch, heads, queries, head_dim].
    """
    scores = query.shape[:-1].numel() * key.shape[-2]
    if query.device.type != "cpu" or query.shape[-1] >= _NARROW_HEAD or scores > _MOST_SCORES:
        fused: Tensor = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return fused
    return attention_weights(query, key, mask) @ value


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + mask), [batch, heads, queries, keys]."""
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1)


def split_heads(inputs: Tensor, num_heads: int) -> Tensor:
    """[batch, tokens, heads * dim] -> [batch, heads, tokens, dim]."""
    batch, tokens, channels = inputs.shape
    return inputs.view(batch, tokens, num_heads, channels // num_heads).transpose(1, 2)


def join_heads(inputs: Tensor) -> Tensor:
    """[batch, heads, tokens, dim] -> [batch, tokens, heads * dim]."""
    return inputs.transpose(1, 2).flatten(2)


class LayerwiseProcessor:
    """Runs one attention module; a cross-attention one takes its own slice of a 4-D encoding.

    Args:
        layer: index of the cross-attention layer, None for self-attention.
    """

    def __init__(self, layer: int | None) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend; [batch, tokens, channels] or [batch, channels, height, width] in and out."""
        del temb
        residual = hidden_states
        spatial = hidden_states.shape[2:] if hidden_states.ndim == 4 else None
        if spatial is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        context = self.context(hidden_states, encoder_hidden_states)
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key = split_heads(attn.to_k(context), attn.heads)
        value = split_heads(attn.to_v(context), attn.heads)
        output: Tensor = attn.to_out[0](join_heads(self.attend(query, key, value, attention_mask)))
        output = attn.to_out[1](output)
        if spatial is not None:
            output = output.transpose(1, 2).reshape(*output.shape[:1], -1, *spatial)
        if attn.residual_connection:
            output = output + residual
        if attn.rescale_output_factor != 1:
            output = output / attn.rescale_output_factor
        return output

    def context(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None) -> Tensor:
        """Pick what keys and values are made of: this layer's encoding, or the input itself."""
        if encoder_hidden_states is None:
            return hidden_states
        if encoder_hidden_states.ndim == 4 and self.layer is not None:
            return encoder_hidden_states[:, self.layer]
        return encoder_hidden_states

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with [batch, heads, tokens, dim] tensors; subclasses observe or redirect here."""
        return attend(query, key, value, mask)


@contextmanager
def layerwise_attention(unet: nn.Module, processor: type[LayerwiseProcessor] = LayerwiseProcessor) -> Iterator[None]:
    """Let ``encoder_hidden_states`` [batch, layers, tokens, dim] give layer i its own slice inside.

    A 3-D encoding still serves every layer. The processors found are put back, also on exceptions.

    Args:
        unet: a diffusers U-Net.
        processor: built once a module as ``processor(layer)``, layer None for self-attention.
    """
    with attention_processors(unet, [processor(layer) for layer in layer_indices(unet)]):
        yield


def layer_indices(unet: nn.Module) -> list[int | None]:
    """For every attention module, in layer order, its cross-attention index, or None for self-attention."""
    indices: list[int | None] = []
    count = 0
    for name in attention_names(unet):
        is_cross = bool(unet.get_submodule(name).is_cross_attention)
        indices.append(count if is_cross else None)
        count += is_cross
    return indices


@contextmanager
def attention_processors(unet: nn.Module, processors: list[Any]) -> Iterator[None]:
    """Install one processor an attention module, in layer order, and put the old ones back afterwards."""
    modules: list[Any] = [unet.get_submodule(name) for name in attention_names(unet)]
    saved = [module.processor for module in modules]
    try:
        for module, processor in zip(modules, processors, strict=True):
            module.set_processor(processor)
        yield
    finally:
        for module, previous in zip(modules, saved, strict=True):
            module.set_processor(previous)
