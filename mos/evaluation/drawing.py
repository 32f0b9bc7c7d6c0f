"""Draw the pictures of one concept by one method: a model, the untrained base, or renders as marks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter
from mos.errors import BadInputError
from mos.evaluation.prompts import Shot
from mos.evaluation.scoring import ConceptTruth

if TYPE_CHECKING:
    from PIL import Image

    from mos.sampling import SamplingConfig
    from mos.smallworld.world import Identity

CEILING_RENDERS, CEILING_AUTOENCODER = "ceiling: renders", "ceiling: autoencoder"
FLOOR_OTHER, FLOOR_BASE = "floor: another identity", "floor: untrained base"
MARKS = (CEILING_RENDERS, CEILING_AUTOENCODER, FLOOR_OTHER)
"""What needs no sampling: pictures drawn by the small world itself."""


class SampledConfig:
    """What a configuration of drawing tells the sampler; mixed into the dataclass that has these fields."""

    num_inference_steps: int
    guidance_scale: float
    batch_size: int

    @property
    def sampling(self) -> "SamplingConfig":
        """The same as options of the sampler."""
        from mos.sampling import SamplingConfig

        return SamplingConfig(
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            batch_size=self.batch_size,
        )


def sampled(
    base: BaseModel,
    adapter: Adapter | None,
    truth: ConceptTruth,
    shots: Sequence[Shot],
    config: "SamplingConfig",
    *,
    bfloat16: bool | None = False,
) -> list["Image.Image"]:
    """Sample every shot with the concept's word, or with its class word from the untrained base.

    Args:
        base: The base model.
        adapter: What draws the concept; None draws its class with the base alone.
        truth: Names the word and the class word.
        shots: Prompts and seeds.
        config: Steps, guidance, batch size.
        bfloat16: Draw under autocast to bfloat16; None does so where the processor has instructions for it.
    """
    import torch

    from mos.sampling import sample

    word = truth.class_word if adapter is None else truth.word
    prompts = [shot.prompt.with_word(word) for shot in shots]
    reduced = supports_bfloat16() if bfloat16 is None else bfloat16
    with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=reduced):
        return sample(base, adapter, prompts, seeds=[shot.seed for shot in shots], config=config)


def supports_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rendered(base: BaseModel, method: str, identity: "Identity", shots: Sequence[Shot]) -> list["Image.Image"]:
    """Draw a mark: the identity, or another of its class, where and how each seed says, as each prompt asks.

    Args:
        base: Its autoencoder makes the ceiling of that name.
        method: One of `MARKS`.
        identity: Who is shown.
        shots: Prompts with the concept alone on a named backdrop, and seeds.
    """
    from mos.smallworld.render import compose_scene, render_scene
    from mos.smallworld.world import neighbour_identity

    if method not in MARKS:
        raise BadInputError(f"mark {method!r}: expected one of {', '.join(MARKS)}")
    shown = neighbour_identity(identity) if method == FLOOR_OTHER else identity
    images = []
    for shot in shots:
        if not shot.prompt.alone or not shot.prompt.backdrop:
            raise BadInputError(f"{shot.prompt.text!r}: a render shows one subject on a named backdrop")
        scene = compose_scene(np.random.default_rng([20270, shot.seed]), [shown], shot.prompt.backdrop)
        images.append(render_scene(scene, with_masks=False).image)
    return reconstructed(base, images) if method == CEILING_AUTOENCODER else images


def reconstructed(base: BaseModel, images: Sequence["Image.Image"], *, batch_size: int = 16) -> list["Image.Image"]:
    """Pictures through the base's autoencoder and back: the best any sample of this base can look."""
    import torch
    from PIL import Image

    results: list[Image.Image] = []
    for start in range(0, len(images), batch_size):
        batch = np.stack([np.asarray(image.convert("RGB")) for image in images[start : start + batch_size]])
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).to(base.device, base.dtype) / 127.5 - 1.0
        with torch.inference_mode():
            latents = base.vae.encode(pixels).latent_dist.mode()
            decoded = base.vae.decode(latents).sample
        values = ((decoded.float() + 1.0) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        results += [Image.fromarray(value) for value in values]
    return results
