"""What one concept feeds into a step: cached latents, captions as token ids, noise and timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mos.base_model import BaseModel
from mos.edlora.adapter import ConceptWords
from mos.edlora.tokens import PromptEncoder
from mos.training.captions import draw_caption, with_words
from mos.training.config import TrainingConfig
from mos.training.data import ConceptData, View, draw_views

_ENCODED_AT_ONCE = 8
_WORD = "<the-concept>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """The autoencoder's mean and deviation of every view [V, C, h, w], and loss weights [V, 1, h, w]."""

    mean: Tensor
    deviation: Tensor
    valid: Tensor
    mask: Tensor
    has_mask: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """n pictures of one concept, all on the base's device.

    Args:
        latents: [n, C, h, w], scaled.
        noise: [n, C, h, w], the offset included.
        timesteps: [n].
        weight: [n, 1, h, w], of the loss.
        masks: [n, 1, h, w], the concept's mask for the attention regulariser (valid area without one).
        has_mask: [n], whether the picture came with a mask.
        token_ids: encoder -> [n, max_length], the concept's words as ids past the vocabulary.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    weight: Tensor
    masks: Tensor
    has_mask: Tensor
    token_ids: dict[str, Tensor]


class Feed:
    """Draws one concept's batches from its own generator and its own shuffled order.

    Args:
        base: whose autoencoder and tokenizers are used.
        data: the concept.
        config: the options; ``config.seed`` decides everything drawn.
    """

    def __init__(self, base: BaseModel, data: ConceptData, config: TrainingConfig) -> None:
        self._base, self._data, self._config = base, data, config
        self.generator = torch.Generator().manual_seed(config.seed)
        views = draw_views(data, config, base.facts.resolution, torch.Generator().manual_seed(config.seed + 1))
        self.moments = encode_views(base, views)
        self._views_of = [
            [index for index, view in enumerate(views) if view.picture == picture]
            for picture in range(len(data.pictures))
        ]
        self._pool = [index for index, picture in enumerate(data.pictures) for _ in range(picture.repeats)]
        self._tokenizer = PromptEncoder(base, [_placeholder(base, config.num_words)])
        self._token_rows: dict[tuple[str, str], list[int]] = {}
        self.order: list[int] = []
        for picture in data.pictures:
            self._tokens(picture.caption)

    def draw(self) -> Batch:
        """Draw the next batch."""
        config, facts = self._config, self._base.facts
        draws = config.draws_per_picture
        different = [self._next_picture() for _ in range(config.batch_size // draws)]
        views = [self._choose(self._views_of[picture]) for picture in different for _ in range(draws)]
        captions = [
            draw_caption(
                self._data.pictures[picture].caption,
                self._data.kind,
                shuffle=config.shuffle_captions,
                templates=config.templates,
                generator=self.generator,
            )
            for picture in different
        ]
        shape = (config.batch_size, facts.latent_channels, *self.moments.mean.shape[2:])
        posterior = torch.randn(shape, generator=self.generator)
        noise = torch.randn(shape, generator=self.generator)
        noise = noise + config.noise_offset * torch.randn((*shape[:2], 1, 1), generator=self.generator)
        num_timesteps = len(self._base.scheduler.alphas_cumprod)
        timesteps = torch.randint(num_timesteps, (config.batch_size,), generator=self.generator)
        return self._batch(views, [text for text in captions for _ in range(draws)], posterior, noise, timesteps)

    def _batch(
        self, views: Sequence[int], captions: Sequence[str], posterior: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Batch:
        device, dtype, moments = self._base.device, self.moments.mean.dtype, self.moments
        latents = moments.mean[views] + moments.deviation[views] * posterior.to(device, dtype)
        use_mask = moments.has_mask[views] if self._config.masked_loss else torch.zeros_like(moments.has_mask[views])
        weight = torch.where(use_mask.view(-1, 1, 1, 1), moments.mask[views], moments.valid[views])
        rows = [self._tokens(caption) for caption in captions]
        return Batch(
            latents=latents * self._base.facts.scaling_factor,
            noise=noise.to(device, dtype),
            timesteps=timesteps.to(device),
            weight=weight,
            masks=moments.mask[views],
            has_mask=moments.has_mask[views],
            token_ids={
                encoder.name: torch.tensor([row[encoder.name] for row in rows], device=device)
                for encoder in self._base.facts.encoders
            },
        )

    def _tokens(self, caption: str) -> dict[str, list[int]]:
        text = with_words(caption, _WORD)
        return {encoder.name: self._cached_tokens(text, encoder.name) for encoder in self._base.facts.encoders}

    def _cached_tokens(self, text: str, encoder: str) -> list[int]:
        key = (text, encoder)
        if key not in self._token_rows:
            self._token_rows[key] = self._tokenizer.token_ids(text, encoder)
        return self._token_rows[key]

    def _next_picture(self) -> int:
        if not self.order:
            shuffled = torch.randperm(len(self._pool), generator=self.generator).tolist()
            self.order = [self._pool[index] for index in shuffled]
        return self.order.pop(0)

    def _choose(self, options: Sequence[int]) -> int:
        if len(options) == 1:
            return options[0]
        return options[int(torch.randint(len(options), (), generator=self.generator))]


@torch.no_grad()
def encode_views(base: BaseModel, views: Sequence[View]) -> Moments:
    """Run the autoencoder once over all views; sampling from the kept moments is exact.

    A view whose mask vanished (cropped away, or finer than a latent pixel) counts as one without a mask.
    """
    device, dtype, factor = base.device, base.dtype, base.facts.vae_scale_factor
    means, deviations = [], []
    for start in range(0, len(views), _ENCODED_AT_ONCE):
        pixels = torch.stack([view.pixels for view in views[start : start + _ENCODED_AT_ONCE]])
        posterior = base.vae.encode(pixels.to(device, base.vae.dtype)).latent_dist
        means.append(posterior.mean)
        deviations.append(posterior.std)
    size = means[0].shape[-2:]
    valid = torch.stack([_shrink(view.valid, size) for view in views])
    masks = torch.stack([_shrink(view.valid if view.mask is None else view.mask, size) for view in views])
    has_mask = torch.tensor([view.mask is not None for view in views]) & (masks.sum(dim=(1, 2, 3)) >= 1 / factor)
    masks = torch.where(has_mask.view(-1, 1, 1, 1), masks, valid)
    kept_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return Moments(
        mean=torch.cat(means).to(kept_dtype),
        deviation=torch.cat(deviations).to(kept_dtype),
        valid=valid.to(device, kept_dtype),
        mask=masks.to(device, kept_dtype),
        has_mask=has_mask.to(device),
    )


def _shrink(plane: Tensor, size: torch.Size) -> Tensor:
    """[S, S] in 0..1 -> [1, h, w]."""
    return interpolate(plane[None, None], size=tuple(size), mode="area")[0]


def _placeholder(base: BaseModel, num_words: int) -> ConceptWords:
    layers = base.facts.num_cross_attention_layers
    return ConceptWords(
        ref="training",
        word=_WORD,
        words=tuple(f"<w{index}>" for index in range(num_words)),
        class_word="",
        embeddings={
            encoder.name: torch.zeros(num_words, layers, encoder.hidden_dim) for encoder in base.facts.encoders
        },
    )
