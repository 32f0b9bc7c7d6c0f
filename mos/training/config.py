"""Every option of training, with the paper's values as defaults (Mix-of-Show, arXiv:2305.18292)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from mos.errors import BadInputError
from mos.facts import TUNABLE, BaseFacts

SD1_MEAN_EMBEDDING_NORM = 0.385
"""Mean norm of a token embedding of Stable Diffusion 1.x, in whose units the embedding options are given."""

Precision = Literal["fp32", "bf16", "fp16"]
Regulariser = Literal["none", "outside", "full-identity"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How one concept is trained.

    Args:
        steps: optimiser steps.
        batch_size: pictures a step.
        draws_per_picture: how often a drawn picture is in a batch, each time with its own view, noise and timestep; its
            caption is encoded once, which saves where the text encoder is a large part of a step.
        accumulation: micro-batches a step; their gradients are averaged.
        rank: of every LoRA update; 0 with an empty ``tuned``.
        tuned: groups of ``mos.facts.TUNABLE`` a LoRA is put on.
        num_words: 2 for ``<V_rand> <V_class>``; 1 for a single word that starts at the class word.
        layerwise: one embedding a cross-attention layer; False trains one for all.
        lr_embedding: learning rate of the word embeddings.
        lr_text_encoder: learning rate of the text encoder's LoRA.
        lr_unet: learning rate of the U-Net's LoRA.
        betas: of AdamW.
        epsilon: of AdamW.
        weight_decay: of AdamW, decoupled.
        warmup_steps: linear warm-up; the rate then falls linearly to 0.
        max_grad_norm: clip every concept's own gradient to this norm; None does not clip.
        initializer_sigma: of V_rand, in units of Stable Diffusion 1.x (scaled by the base's mean token norm).
        embedding_norm_stop: freeze the embeddings when their mean norm reaches this, in the same units.
        noise_offset: share of a constant noise a channel.
        masked_loss: weight the loss by the concept's mask where a picture has one.
        attention_regulariser: ``outside`` keeps both words' attention inside the mask, ``full-identity``
            also asks V_class to cover it.
        attention_weight: of that regulariser.
        min_snr_gamma: min-SNR weighting of the loss; None weighs all timesteps alike.
        min_snr_power: power of that weight; below 1 the noisy timesteps keep more of their share.
        crop_probability: how often a picture that is not square is cropped instead of padded.
        views_per_picture: crops drawn beforehand, whose autoencoder moments are cached.
        flip: also show pictures mirrored (wrong for anything with a left and a right).
        shuffle_captions: shuffle a caption's parts between commas, the first part kept.
        templates: put captions without text into templates for the concept's kind.
        precision: fp32, or bf16 / fp16 by autocast; LoRA, embeddings and optimiser stay float32.
        gradient_checkpointing: recompute activations of the U-Net instead of keeping them.
        compile: run the U-Net's blocks that no LoRA touches through ``torch.compile``; needs a compiler.
        seed: of everything random.
    """

    steps: int = 500
    batch_size: int = 2
    draws_per_picture: int = 1
    accumulation: int = 1
    rank: int = 4
    tuned: tuple[str, ...] = ("text_encoder.attention", "unet.attention")
    num_words: int = 2
    layerwise: bool = True
    lr_embedding: float = 1e-3
    lr_text_encoder: float = 1e-5
    lr_unet: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 0
    max_grad_norm: float | None = None
    initializer_sigma: float = 0.013
    embedding_norm_stop: float = 0.55
    noise_offset: float = 0.01
    masked_loss: bool = True
    attention_regulariser: Regulariser = "none"
    attention_weight: float = 0.01
    min_snr_gamma: float | None = None
    min_snr_power: float = 1.0
    crop_probability: float = 0.5
    views_per_picture: int = 8
    flip: bool = False
    shuffle_captions: bool = True
    templates: bool = True
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [text for holds, text in self._checks() if not holds]
        if problems:
            raise BadInputError(f"training options: {'; '.join(problems)}")

    def _checks(self) -> tuple[tuple[bool, str], ...]:
        rates = (self.lr_embedding, self.lr_text_encoder, self.lr_unet)
        return (
            (self.steps >= 1, f"steps {self.steps}, expected at least 1"),
            (1 <= self.batch_size <= 1024, f"batch_size {self.batch_size}, expected 1 to 1024"),
            (self.draws_per_picture >= 1 and self.batch_size % max(self.draws_per_picture, 1) == 0,
             f"draws_per_picture {self.draws_per_picture}, expected a divisor of batch_size {self.batch_size}"),
            (self.accumulation >= 1, f"accumulation {self.accumulation}, expected at least 1"),
            (0 <= self.rank <= 256, f"rank {self.rank}, expected 0 to 256"),
            ((self.rank == 0) == (not self.tuned), f"rank {self.rank} with tuned {list(self.tuned)}"),
            (list(self.tuned) == [name for name in TUNABLE if name in self.tuned], f"tuned {list(self.tuned)}, "
             f"expected some of {list(TUNABLE)} in that order"),
            (self.num_words in (1, 2), f"num_words {self.num_words}, expected 1 or 2"),
            (all(0 <= rate <= 1 for rate in rates), f"learning rates {rates}, expected 0 to 1"),
            (all(0 <= beta < 1 for beta in self.betas), f"betas {self.betas}, expected 0 to below 1"),
            (self.epsilon > 0, f"epsilon {self.epsilon}, expected above 0"),
            (0 <= self.weight_decay <= 1, f"weight_decay {self.weight_decay}, expected 0 to 1"),
            (0 <= self.warmup_steps < self.steps, f"warmup_steps {self.warmup_steps}, expected 0 to below steps"),
            (self.max_grad_norm is None or self.max_grad_norm > 0, f"max_grad_norm {self.max_grad_norm}"),
            (self.initializer_sigma >= 0, f"initializer_sigma {self.initializer_sigma}"),
            (self.embedding_norm_stop > 0, f"embedding_norm_stop {self.embedding_norm_stop}"),
            (0 <= self.noise_offset <= 1, f"noise_offset {self.noise_offset}, expected 0 to 1"),
            (self.attention_regulariser in ("none", "outside", "full-identity"),
             f"attention_regulariser {self.attention_regulariser!r}"),
            (self.attention_weight >= 0, f"attention_weight {self.attention_weight}"),
            (self.min_snr_gamma is None or self.min_snr_gamma > 0, f"min_snr_gamma {self.min_snr_gamma}"),
            (0 < self.min_snr_power <= 1, f"min_snr_power {self.min_snr_power}, expected above 0, at most 1"),
            (0 <= self.crop_probability <= 1, f"crop_probability {self.crop_probability}, expected 0 to 1"),
            (1 <= self.views_per_picture <= 64, f"views_per_picture {self.views_per_picture}, expected 1 to 64"),
            (self.precision in ("fp32", "bf16", "fp16"), f"precision {self.precision!r}"),
            (0 <= self.seed < 1 << 63, f"seed {self.seed}"),
        )  # fmt: skip

    def with_options(self, **options: Any) -> "TrainingConfig":
        """Return a copy with some options changed.

        Raises:
            BadInputError: If there is no such option or a value is out of range.
        """
        known = {field.name for field in fields(self)}
        unknown = sorted(options.keys() - known)
        if unknown:
            raise BadInputError(f"training options: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return replace(self, **options)

    def recipe(self) -> dict[str, str]:
        """Return every option as text, for the artifact's card."""
        return {field.name: _as_text(getattr(self, field.name)) for field in fields(self)}


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


_PAPER = TrainingConfig()
_SMALL_WORLD = TrainingConfig(
    steps=260,
    batch_size=8,
    lr_embedding=1e-2,
    lr_text_encoder=1e-4,
    lr_unet=1e-3,
    min_snr_gamma=5.0,
    embedding_norm_stop=1.6,
    masked_loss=False,
    shuffle_captions=False,
)
_ONE_TOKEN: Mapping[str, Any] = {"num_words": 1, "layerwise": False}
_EMBEDDING_ONLY: Mapping[str, Any] = {"num_words": 1, "rank": 0, "tuned": ()}

PRESETS: Mapping[str, TrainingConfig] = {
    "paper": _PAPER,
    "paper-human": replace(_PAPER, steps=1000, batch_size=4),
    "small-world": _SMALL_WORLD,
    "lora": replace(_PAPER, **_ONE_TOKEN),
    "textual-inversion": replace(_PAPER, **_EMBEDDING_ONLY, layerwise=False, lr_embedding=5e-3),
    "p-plus": replace(_PAPER, **_EMBEDDING_ONLY, lr_embedding=5e-3),
    "small-world-lora": replace(_SMALL_WORLD, **_ONE_TOKEN),
    "small-world-textual-inversion": replace(_SMALL_WORLD, **_EMBEDDING_ONLY, layerwise=False),
    "small-world-p-plus": replace(_SMALL_WORLD, **_EMBEDDING_ONLY),
}
"""Named recipes. ``paper`` is for objects, ``paper-human`` for people; the rest are baselines of the same trainer."""


def preset_for(facts: BaseFacts, kind: str = "object") -> TrainingConfig:
    """Choose the recipe for a base: the paper's for Stable Diffusion's sizes, else the small world's.

    The small world's trains in bf16 where the processor multiplies it natively: a fifth less CPU time for
    losses equal to five digits.
    """
    if min(facts.encoders[0].hidden_dim, facts.resolution) < 256:
        import torch

        is_fast = torch.cpu.get_capabilities().get("avx512_bf16", False)
        return replace(_SMALL_WORLD, precision="bf16") if is_fast else _SMALL_WORLD
    return PRESETS["paper-human" if kind == "human" else "paper"]
