"""A tiny random base, three concepts on it, and a config that takes a moment."""

from collections.abc import Callable

import pytest

from mos.base_model import BaseModel
from mos.fusion import FusionConfig, FusionSource, StageRule
from mos.random_base import random_base
from mos.random_concept import random_concept


@pytest.fixture(scope="session")
def base() -> BaseModel:
    return random_base()


@pytest.fixture(scope="session")
def sources(base: BaseModel) -> list[FusionSource]:
    names = ("alice/robot@1", "bob/cat@2", "carol/house@1")
    return [random_concept(base, name, seed) for seed, name in enumerate(names)]


@pytest.fixture(scope="session")
def make_config() -> Callable[..., FusionConfig]:
    def make(**changes: object) -> FusionConfig:
        options: dict[str, object] = {
            "sampling_steps": 2,
            "latent_seeds": (0,),
            "text_encoder": StageRule(steps=30, generic_weight=0.03, ridge=1e-4),
            "cross_attention": StageRule(steps=30, generic_weight=0.03, ridge=1e-4),
            "spatial": StageRule(steps=10, ridge=1e-3),
            "prompts": ("photo of a {}", "{}"),
            "generic_prompts": ("", "a photo", "a cat and a dog"),
            "drift_prompts": ("a house in the snow",),
            "held_out_prompts": ("a {} in the snow",),
        }
        return FusionConfig(**(options | changes))

    return make
