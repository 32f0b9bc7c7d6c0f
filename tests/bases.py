"""A tiny random base on disk, which workers can load by its path."""

from pathlib import Path

from diffusers import StableDiffusionPipeline

from mos.base_model import BaseModel
from mos.random_base import random_base


def saved_random_base(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny random base in the layout of Stable Diffusion 1.x."""
    base: BaseModel = random_base("sd1", seed=seed)
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=base.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
