"""Telling a good run from a bad one: does the embedding alone carry the identity?

Embedding learning is unstable from seed to seed. What ED-LoRA is for is that the words alone, LoRA at scale
0, already show the concept; this is measured here by the base's own loss on the concept's pictures, with the
same noise for all, so that it needs no other model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mos.artifact import EDLoRA
from mos.base_model import BaseModel
from mos.concept import ConceptRef
from mos.edlora.adapter import Adapter, applied
from mos.edlora.attention import layerwise_attention
from mos.edlora.tokens import PromptEncoder
from mos.training.batches import encode_views
from mos.training.captions import with_words
from mos.training.config import TrainingConfig
from mos.training.data import ConceptData, draw_views
from mos.training.losses import add_noise, masked_errors, prediction_target

SHARE_WANTED = 0.25
"""Below this share the embedding does not carry the identity by itself."""

_REF = ConceptRef("training", "concept")


@dataclass(frozen=True, kw_only=True)
class EmbeddingShare:
    """Losses on the concept's pictures: with the class word, with the words alone, with words and LoRA."""

    plain: float
    embedding: float
    full: float

    @property
    def share(self) -> float:
        """How much of the whole gain the words alone bring: 0 none, 1 all of it."""
        gain = self.plain - self.full
        return (self.plain - self.embedding) / gain if gain > 0 else 0.0

    @property
    def warning(self) -> str:
        """What to do if the words alone do not carry the identity, else empty."""
        if self.full >= self.plain:
            return (
                "the concept is not learnt: its pictures are no likelier than the class word alone makes them; "
                "train more steps, or check pictures and class word (mos data check)"
            )
        if self.share < SHARE_WANTED:
            return (
                f"the embedding alone carries {self.share:.0%} of the identity (wanted {SHARE_WANTED:.0%}): "
                "fusing will lose more of it; train several seeds and keep the best, raise the embedding's "
                "learning rate, or lower the U-Net's"
            )
        return ""


@torch.no_grad()
def embedding_share(
    base: BaseModel, data: ConceptData, edlora: EDLoRA, *, timesteps_per_picture: int = 8, seed: int = 0
) -> EmbeddingShare:
    """Measure what the words alone have learnt.

    Args:
        base: the base the concept was trained on.
        data: its pictures.
        edlora: the concept.
        timesteps_per_picture: evenly spread over the schedule, the same for all three losses.
        seed: of the noise.
    """
    adapter = edlora.adapter(_REF)
    generator = torch.Generator().manual_seed(seed)
    views = draw_views(data, TrainingConfig(views_per_picture=1), base.facts.resolution, generator)
    moments = encode_views(base, views)
    shape = (timesteps_per_picture, len(views), *moments.mean.shape[1:])
    noise = torch.randn(shape, generator=generator).to(base.device, moments.mean.dtype)
    weight = torch.where(moments.has_mask.view(-1, 1, 1, 1), moments.mask, moments.valid)
    captions = [with_words(data.pictures[view.picture].caption, _REF.word) for view in views]
    latents = moments.mean * base.facts.scaling_factor

    encoder = PromptEncoder(base, adapter.vocabulary)
    plain = [encoder.plain(caption) for caption in captions]

    def loss(used: Adapter | None, prompts: Sequence[str], scale: float = 1.0) -> float:
        with applied(base, used, scale=scale), layerwise_attention(base.unet):
            return _mean_loss(base, encoder, prompts, latents, noise, weight)

    return EmbeddingShare(plain=loss(None, plain), embedding=loss(adapter, captions, 0.0), full=loss(adapter, captions))


def _mean_loss(
    base: BaseModel, encoder: PromptEncoder, prompts: Sequence[str], latents: Tensor, noise: Tensor, weight: Tensor
) -> float:
    encoding = encoder.encode(prompts, truncate=True)
    alphas = base.scheduler.alphas_cumprod.to(latents.device, latents.dtype)
    steps = torch.linspace(0, len(alphas) - 1, len(noise) + 2)[1:-1].long()
    conditions = None
    if encoding.pooled is not None:
        side = float(base.facts.resolution)
        sizes = encoding.pooled.new_tensor([side, side, 0.0, 0.0, side, side]).expand(len(latents), -1)
        conditions = {"text_embeds": encoding.pooled, "time_ids": sizes}
    total = 0.0
    for step, drawn in zip(steps.tolist(), noise, strict=True):
        timesteps = torch.full((len(latents),), step, device=latents.device)
        noisy = add_noise(latents, drawn, alphas, timesteps)
        predicted = base.unet(
            noisy.to(base.dtype), timesteps, encoder_hidden_states=encoding.context, added_cond_kwargs=conditions
        ).sample
        target = prediction_target(latents, drawn, alphas, timesteps, base.facts.prediction_type)
        total += float(masked_errors(predicted, target, weight).mean())
    return total / len(noise)
