"""Pictures from prompts: encode, denoise and decode, each picture depending on its prompt and seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter, applied
from mos.edlora.tokens import PromptEncoder, PromptEncoding
from mos.errors import BadInputError
from mos.sampling.condition import Condition
from mos.sampling.conditioning import Conditioning
from mos.sampling.config import SamplingConfig
from mos.sampling.denoising import denoise
from mos.sampling.geometry import lay_out
from mos.sampling.region import Region
from mos.sampling.schedulers import seed_generator, starting_noise
from mos.sampling.unfused import Scale, component_scale, text_part

OnPictures = Callable[[int, int], None]


@torch.no_grad()
def sample(
    base: BaseModel,
    adapter: Adapter | None,
    prompts: Sequence[str],
    *,
    negative_prompt: str = "",
    regions: Sequence[Region] = (),
    seeds: Sequence[int],
    config: SamplingConfig | None = None,
    scale: Scale = 1.0,
    conditions: Sequence[Condition] = (),
    on_pictures: OnPictures | None = None,
) -> list[Image.Image]:
    """Draw one picture for every pair of prompt and seed.

    Args:
        base: The base model; its weights are as before afterwards.
        adapter: A single ED-LoRA or a fused model; None draws with the base alone.
        prompts: One a picture, each concept written as its one word.
        negative_prompt: What guidance moves away from, outside the regions.
        regions: The layout, the same for every picture; regions may carry their own adapters.
        seeds: One a picture: the same prompt and seed give the same picture in any batch, up to rounding.
        config: Steps, guidance, size, scheduler.
        scale: Factor on all low-rank updates, or one a component; word embeddings are not scaled.
        conditions: Sketches, poses.
        on_pictures: Called with (pictures done, pictures in all) after every batch.

    Returns:
        RGB pictures in the order of the prompts.

    Raises:
        BadInputError: If counts differ, the size does not fit, a prompt has an unknown word or is too long,
            or a region, adapter or condition does not fit the base.
    """
    config = SamplingConfig() if config is None else config
    size = _checked_size(base, prompts, seeds, regions, config)
    pictures: list[Image.Image] = []
    with applied(base, adapter, scale=scale):
        distinct = list(dict.fromkeys(prompts))
        positive, negative = encode_scene(base, adapter, distinct, negative_prompt, regions, config=config, scale=scale)
        for start in range(0, len(prompts), config.batch_size):
            chosen = range(start, min(start + config.batch_size, len(prompts)))
            batch_seeds = [seeds[index] for index in chosen]
            latents = denoise(
                base,
                positive.rows([distinct.index(prompts[index]) for index in chosen]),
                None if negative is None else negative.rows(chosen),
                starting_noise(batch_seeds, (base.facts.latent_channels, *size)),
                config,
                regions=regions,
                scale=scale,
                conditions=conditions,
                generators=[seed_generator(seed ^ _STEP_STREAM) for seed in batch_seeds],
            )
            pictures += decode(base, latents)
            if on_pictures is not None:
                on_pictures(len(pictures), len(prompts))
    return pictures


def _checked_size(
    base: BaseModel, prompts: Sequence[str], seeds: Sequence[int], regions: Sequence[Region], config: SamplingConfig
) -> tuple[int, int]:
    """Refuse before any work what cannot be drawn; returns the latents' height and width."""
    if len(prompts) != len(seeds):
        raise BadInputError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed for every picture")
    height, width = picture_size(base, config)
    size = (height // base.facts.vae_scale_factor, width // base.facts.vae_scale_factor)
    lay_out(base.unet, regions, size, torch.device("cpu"))
    return size


_STEP_STREAM = 0x5EED  # keeps the noise drawn at each step apart from the starting noise of the same seed


def picture_size(base: BaseModel, config: SamplingConfig) -> tuple[int, int]:
    """Height and width in pixels, the base's own where the config leaves them open.

    Raises:
        BadInputError: If a side is no multiple of the autoencoder's factor.
    """
    factor = base.facts.vae_scale_factor
    sides = []
    for name, asked in (("height", config.height), ("width", config.width)):
        side = base.facts.resolution if asked is None else asked
        if side % factor:
            raise BadInputError(f"{name} is {side}, expected a multiple of {factor} for base {base.facts.name}")
        sides.append(side)
    return sides[0], sides[1]


def encode_scene(
    base: BaseModel,
    adapter: Adapter | None,
    prompts: Sequence[str],
    negative_prompt: str,
    regions: Sequence[Region],
    *,
    config: SamplingConfig,
    scale: Scale = 1.0,
) -> tuple[Conditioning, Conditioning | None]:
    """Encode the prompts of a scene with the base as it is now, regions with their own adapters' encoders.

    The global prompt knows every word: those of the adapter and, by their embeddings alone, those of the
    regions' adapters.

    Returns:
        The positive branch with one row a prompt, and the negative one or None at guidance 1; regions and
        negatives have a single row. Choose pictures with :meth:`Conditioning.rows`.

    Raises:
        PromptError: For an unknown word or an over-long prompt.
    """
    vocabulary = list(adapter.vocabulary) if adapter is not None else []
    known = {concept.word for concept in vocabulary}
    for region in regions:
        for concept in region.adapter.vocabulary if region.adapter is not None else ():
            if concept.word not in known:
                vocabulary.append(concept)
                known.add(concept.word)
    encoder = PromptEncoder(base, vocabulary)
    positive = [encoder.encode(prompts, truncate=config.truncate)]
    positive += [_encode_region(base, encoder, region, region.prompt, config, scale) for region in regions]
    if config.guidance_scale == 1.0:
        return _stacked(positive), None
    negative = [encoder.encode([negative_prompt], truncate=config.truncate)]
    negative += [_encode_region(base, encoder, region, region.negative_prompt, config, scale) for region in regions]
    return _stacked(positive), _stacked(negative)


def _encode_region(
    base: BaseModel,
    encoder: PromptEncoder,
    region: Region,
    prompt: str,
    config: SamplingConfig,
    scale: Scale,
) -> PromptEncoding:
    if region.adapter is None:
        return encoder.encode([prompt], truncate=config.truncate)
    own = text_part(region.adapter)
    factors = {name: component_scale(scale, name) for name in own.linears}
    with applied(base, own, scale=factors):
        return PromptEncoder(base, own.vocabulary).encode([prompt], truncate=config.truncate)


def _stacked(encodings: Sequence[PromptEncoding]) -> Conditioning:
    return Conditioning(segments=tuple(encoding.context for encoding in encodings), pooled=encodings[0].pooled)


@torch.no_grad()
def decode(base: BaseModel, latents: Tensor) -> list[Image.Image]:
    """Turn latents [batch, channels, height, width] into RGB pictures.

    Raises:
        BadInputError: If the latents are not finite: the weights or the guidance have run away.
    """
    if not torch.isfinite(latents).all():
        raise BadInputError("the picture ran away to values that are not finite; lower the guidance or the LoRA scale")
    scaled = (latents / base.facts.scaling_factor).to(base.dtype)
    decoded = base.vae.decode(scaled, return_dict=False)[0]
    values = ((decoded.float() / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(np.asarray(picture.permute(1, 2, 0))) for picture in values]
