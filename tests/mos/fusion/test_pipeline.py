"""The merged pipeline is an ordinary diffusers pipeline with the concepts in its weights and tokenizer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from mos.base_model import BaseModel, fingerprint
from mos.edlora.adapter import applied
from mos.fusion import FusionConfig, FusionSource, fuse
from mos.fusion.pipeline import pipeline_prompt, write_pipeline


@pytest.fixture
def pipeline(
    base: BaseModel, sources: list[FusionSource], make_config: Callable[..., FusionConfig], tmp_path: Path
) -> StableDiffusionPipeline:
    model = fuse(base, sources, make_config(strategy="sum"))
    return StableDiffusionPipeline.from_pretrained(write_pipeline(base, model.adapter, tmp_path / "pipeline"))


def test_the_pipeline_draws_and_its_weights_are_the_merged_ones(
    base: BaseModel,
    sources: list[FusionSource],
    make_config: Callable[..., FusionConfig],
    pipeline: StableDiffusionPipeline,
) -> None:
    with applied(base, fuse(base, sources, make_config(strategy="sum")).adapter):
        merged = fingerprint(base.unet)
    assert fingerprint(pipeline.unet) == merged != base.facts.fingerprint["unet"]
    assert fingerprint(base.unet) == base.facts.fingerprint["unet"]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        "photo of a <alice-robot-rand> <alice-robot-class>",
        num_inference_steps=2,
        output_type="np",
        height=32,
        width=32,
    ).images
    assert images.shape == (1, 32, 32, 3)


def test_the_words_are_tokens_and_the_old_vocabulary_is_bit_equal(
    base: BaseModel, sources: list[FusionSource], pipeline: StableDiffusionPipeline
) -> None:
    old = base.text_encoder.get_input_embeddings().weight
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(old)], old)
    ids = pipeline.tokenizer("<bob-cat-rand> <bob-cat-class>", add_special_tokens=False).input_ids
    assert ids == [len(old) + 2, len(old) + 3]
    expected = sources[1].edlora.embeddings["text_encoder"].mean(dim=1)
    assert torch.equal(table[ids], expected)


def test_prompts_are_rewritten_in_one_pass(base: BaseModel, sources: list[FusionSource]) -> None:
    adapter = fuse(base, sources, FusionConfig(strategy="sum")).adapter
    assert pipeline_prompt("<bob-cat> and <alice-robot>, <bob-cat>", adapter) == (
        "<bob-cat-rand> <bob-cat-class> and <alice-robot-rand> <alice-robot-class>, <bob-cat-rand> <bob-cat-class>"
    )
    assert pipeline_prompt("a cat", adapter) == "a cat"
