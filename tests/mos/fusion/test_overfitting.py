"""The guard against the fusion's own success: a lower loss on its prompts is no use if it ruins all others."""

import dataclasses

import pytest

from mos.base_model import BaseModel
from mos.fusion import FusionConfig, FusionSource, StageRule, fuse
from mos.fusion.config import PAPER_PROMPTS
from mos.random_base import random_base
from mos.random_concept import random_concept


@pytest.fixture(scope="module")
def wide_base() -> BaseModel:
    """Wide enough for an update of its text encoder to overfit the prompts."""
    return random_base(text_width=128)


@pytest.fixture(scope="module")
def concepts(wide_base: BaseModel) -> list[FusionSource]:
    names = ("alice/robot@1", "bob/cat@1", "carol/house@1")
    return [
        random_concept(wide_base, name, seed, rank=4, components=("text_encoder",)) for seed, name in enumerate(names)
    ]


def text_figures(base: BaseModel, concepts: list[FusionSource], rule: StageRule) -> tuple[float, float, float]:
    """Mean fit, mean held-out error and drift of the text encoder."""
    figures = fuse(base, concepts, FusionConfig(text_encoder=rule, prompts=PAPER_PROMPTS)).report["stages"][
        "text-encoder"
    ]
    means = [
        sum(concept[name] for concept in figures["concepts"].values()) / len(concepts) for name in ("fit", "held_out")
    ]
    return means[0], means[1], figures["drift"]


def check_guard(figures: tuple[float, float, float]) -> None:
    """On other prompts no worse than the base itself, and hardly a move where no concept is mentioned."""
    _, held_out, drift = figures
    assert held_out < 1.0
    assert drift < 0.1


def test_the_default_keeps_other_prompts_and_without_the_generic_ones_it_does_not(
    wide_base: BaseModel, concepts: list[FusionSource]
) -> None:
    rule = FusionConfig().text_encoder
    default = text_figures(wide_base, concepts, rule)
    check_guard(default)
    for weaker in (dataclasses.replace(rule, generic_weight=0.0), StageRule(steps=500)):  # the ridge; early stopping
        without = text_figures(wide_base, concepts, weaker)
        with pytest.raises(AssertionError):
            check_guard(without)
        assert without[0] < default[0] < 1.2 * without[0]
