"""The forward pass of one step over the concept-grouped batch.

Legend: K concepts, n pictures a concept, U different captions a concept at most, L cross-attention layers
(1 where all layers share an embedding), T tokens, D dimension.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mos.base_model import BaseModel
from mos.edlora.attention import LayerwiseProcessor, attention_processors, layer_indices
from mos.edlora.tokens import encode_token_rows
from mos.training.batches import Batch
from mos.training.config import TrainingConfig
from mos.training.gelu import fused_activations
from mos.training.losses import (
    AttentionRecord,
    RecordingProcessor,
    add_noise,
    attention_penalties,
    masked_errors,
    min_snr_weights,
    prediction_target,
)
from mos.training.parameters import ConceptParameters


@contextmanager
def slot_losses(
    base: BaseModel, parameters: ConceptParameters, batches: Sequence[Batch], configs: Sequence[TrainingConfig]
) -> Iterator[Tensor]:
    """Compute every concept's mean loss [K], differentiable; run the backward pass inside the context.

    Args:
        base: frozen.
        parameters: of the K concepts.
        batches: one a concept, all of n pictures.
        configs: one a concept.
    """
    config = configs[0]
    contexts, pooled = [], None
    with _autocast(base, config), _lean_text_encoders(base), parameters.hooked(tuple(base.text_encoders)):
        for encoder in base.facts.encoders:
            hidden, pooled = _encode_captions(base, parameters, encoder.name, batches)
            contexts.append(hidden)
    context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=-1)
    record = _record(base, batches, config)
    processors = [
        LayerwiseProcessor(layer) if record is None else RecordingProcessor(layer, record)
        for layer in layer_indices(base.unet)
    ]
    with attention_processors(base.unet, processors), parameters.hooked(("unet",)), _checkpointing(base, config):
        errors = _prediction_errors(base, batches, configs, context, pooled)
        losses = errors.view(len(batches), -1).mean(dim=1)
        if record is not None:
            losses = losses + _penalties(record, batches, configs)
        yield losses


def _prediction_errors(
    base: BaseModel,
    batches: Sequence[Batch],
    configs: Sequence[TrainingConfig],
    context: Tensor,
    pooled: Tensor | None,
) -> Tensor:
    """Every picture's weighted error, [K*n]."""
    latents, noise, weight = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("latents", "noise", "weight")
    )
    timesteps = torch.cat([batch.timesteps for batch in batches])
    alphas = base.scheduler.alphas_cumprod.to(latents.device, latents.dtype)
    noisy = add_noise(latents, noise, alphas, timesteps)
    with _autocast(base, configs[0]):
        prediction = base.unet(
            noisy.to(base.dtype),
            timesteps,
            encoder_hidden_states=context,
            added_cond_kwargs=_added_conditions(base, pooled),
        ).sample
    target = prediction_target(latents, noise, alphas, timesteps, base.facts.prediction_type)
    errors = masked_errors(prediction, target, weight)
    weights = [
        torch.ones_like(batch.latents[:, 0, 0, 0])
        if config.min_snr_gamma is None
        else min_snr_weights(
            alphas, batch.timesteps, config.min_snr_gamma, base.facts.prediction_type, config.min_snr_power
        )
        for batch, config in zip(batches, configs, strict=True)
    ]
    return errors * torch.cat(weights)


def _encode_captions(
    base: BaseModel, parameters: ConceptParameters, encoder: str, batches: Sequence[Batch]
) -> tuple[Tensor, Tensor]:
    """Encode every concept's different captions once: [K*n, L, T, D] (L expanded) and pooled [K*n, D]."""
    words = parameters.words(encoder)
    num_slots, num_words, layers, dim = words.shape
    vocab_size = base.facts.encoder(encoder).vocab_size
    rows, where = _distinct_rows([batch.token_ids[encoder] for batch in batches])
    num_rows = rows.shape[1]
    slot_of = torch.arange(num_slots, device=rows.device).view(-1, 1, 1)
    ids = torch.where(rows >= vocab_size, rows + slot_of * num_words, rows)
    ids = ids[:, :, None].expand(-1, -1, layers, -1).reshape(num_slots * num_rows * layers, -1)
    layer_of = torch.arange(layers, device=rows.device).repeat(num_slots * num_rows)
    hidden, pooled = encode_token_rows(base, encoder, ids, layer_of, words.reshape(num_slots * num_words, layers, dim))
    by_layer = hidden.view(num_slots * num_rows, layers, *hidden.shape[1:]).transpose(0, 1)
    context = by_layer.index_select(1, where).transpose(0, 1)
    if layers == 1:
        context = context.expand(-1, base.facts.num_cross_attention_layers, -1, -1)
    pooled_rows = pooled.view(num_slots * num_rows, layers, -1)[:, 0]
    return context, pooled_rows.index_select(0, where)


def _distinct_rows(token_ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Find every concept's different captions.

    Returns:
        Token rows [K, U, T], padded with a concept's first caption, and where in their flattened form
        [K*U] each of the K*n pictures finds its own.
    """
    distinct: list[list[tuple[int, ...]]] = []
    places: list[list[int]] = []
    for ids in token_ids:
        rows = [tuple(row) for row in ids.tolist()]
        distinct.append(list(dict.fromkeys(rows)))
        places.append([distinct[-1].index(row) for row in rows])
    most = max(len(rows) for rows in distinct)
    device = token_ids[0].device
    padded = [rows + [rows[0]] * (most - len(rows)) for rows in distinct]
    where = [slot * most + place for slot, own in enumerate(places) for place in own]
    return torch.tensor(padded, device=device), torch.tensor(where, device=device)


def _added_conditions(base: BaseModel, pooled: Tensor | None) -> dict[str, Tensor] | None:
    """SDXL's extra conditions: the pooled prompt, and the size of a picture that was not cropped."""
    if base.facts.family != "sdxl" or pooled is None:
        return None
    side = float(base.facts.resolution)
    sizes = pooled.new_tensor([side, side, 0.0, 0.0, side, side]).expand(pooled.shape[0], -1)
    return {"text_embeds": pooled, "time_ids": sizes}


def _record(base: BaseModel, batches: Sequence[Batch], config: TrainingConfig) -> AttentionRecord | None:
    if config.attention_regulariser == "none":
        return None
    encoder = base.facts.encoders[0]
    positions = []
    for batch in batches:
        for row in batch.token_ids[encoder.name].tolist():
            words = [row.index(encoder.vocab_size + index) for index in range(config.num_words)]
            positions.append(words)
    return AttentionRecord(positions, base.device)


def _penalties(record: AttentionRecord, batches: Sequence[Batch], configs: Sequence[TrainingConfig]) -> Tensor:
    """Every concept's weighted regulariser, [K]; pictures without a mask count as zero."""
    masks = torch.cat([batch.masks for batch in batches])
    has_mask = torch.cat([batch.has_mask for batch in batches])
    size = (masks.shape[2], masks.shape[3])
    penalties = attention_penalties(record, masks, configs[0].attention_regulariser, size)
    kept = torch.where(has_mask, penalties.to(masks.dtype), torch.zeros_like(penalties, dtype=masks.dtype))
    weights = kept.new_tensor([config.attention_weight for config in configs])
    return kept.view(len(batches), -1).mean(dim=1) * weights


def _autocast(base: BaseModel, config: TrainingConfig) -> Any:
    if config.precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float16
    return torch.autocast(base.device.type, dtype=dtype)


@contextmanager
def _lean_text_encoders(base: BaseModel) -> Iterator[None]:
    """Fuse the text encoders' activation, and on a CPU attend by plain operations.

    There the fused attention kernel's backward is 26 % of a step.
    """
    configs = [encoder.config for encoder in base.text_encoders.values()] if base.device.type == "cpu" else []
    found = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        with ExitStack() as stack:
            for encoder in base.text_encoders.values():
                stack.enter_context(fused_activations(encoder))
            yield
    finally:
        for config, implementation in zip(configs, found, strict=True):
            config._attn_implementation = implementation


@contextmanager
def _checkpointing(base: BaseModel, config: TrainingConfig) -> Iterator[None]:
    if not config.gradient_checkpointing:
        yield
        return
    base.unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        base.unet.disable_gradient_checkpointing()
