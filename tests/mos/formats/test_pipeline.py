"""Concepts on an ordinary pipeline give what mos itself computes, and leave nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mos
from mos.concept import ConceptRef
from mos.edlora.adapter import applied
from mos.edlora.attention import layerwise_attention
from mos.edlora.tokens import PromptEncoder
from mos.errors import BadInputError, ConflictError
from mos.formats.pipeline import Concept
from mos.random_base import random_base
from tests.mos.formats.concepts import EVERYTHING, random_concept
from tests.mos.formats.pipelines import pipeline_of

PROMPTS = ["a photo of <alice-tom> on the beach", "a red house"]


def _concept(base, name="alice/tom", seed=0):
    return Concept(ref=ConceptRef.parse(name), edlora=random_concept(base, tuned=EVERYTHING, seed=seed))


def _encode(pipe, prompts, **options):
    if hasattr(pipe, "text_encoder_2"):
        context, _, pooled, _ = pipe.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False, **options)
        return context, pooled
    return pipe.encode_prompt(prompts, "cpu", 1, False, **options)[0], None


def _conditions(pooled):
    if pooled is None:
        return {}
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.full((len(pooled), 6), 32.0)}}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@torch.no_grad()
def test_a_pipeline_computes_what_mos_computes(family):
    base = random_base(family)
    concept = _concept(base)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with applied(base, concept.adapter, scale=0.7):
        ours = PromptEncoder(base, concept.adapter.vocabulary).encode(PROMPTS)
        with layerwise_attention(base.unet):
            expected = base.unet(noise, 500, ours.context, **_conditions(ours.pooled)).sample
    pipe = pipeline_of(random_base(family))
    with mos.apply(pipe, concept, scale=0.7):
        context, pooled = _encode(pipe, PROMPTS)
        found = pipe.unet(noise, 500, context, **_conditions(pooled)).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if pooled is not None:
        torch.testing.assert_close(pooled, ours.pooled, atol=1e-5, rtol=0)
    plain = base.unet(noise, 500, ours.context[:, 0], **_conditions(ours.pooled)).sample
    assert (expected[0] - plain[0]).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_removing_leaves_the_pipeline_bit_equal(family):
    base = random_base(family)
    pipe = pipeline_of(base)
    parts = [pipe.unet, *base.text_encoders.values()]
    before = [{key: value.clone() for key, value in part.state_dict().items()} for part in parts]
    tokenizer, processors = pipe.tokenizer, dict(pipe.unet.attn_processors)
    with torch.no_grad():
        encoded = _encode(pipe, ["a cat"])[0]

    def fail_half_way():
        with mos.apply(pipe, _concept(base)):
            assert pipe.tokenizer is not tokenizer
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert pipe.tokenizer is tokenizer
    assert dict(pipe.unet.attn_processors) == processors
    for part, weights in zip(parts, before, strict=True):
        assert all(torch.equal(value, weights[key]) for key, value in part.state_dict().items())
    with torch.no_grad():
        assert torch.equal(_encode(pipe, ["a cat"])[0], encoded)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_whole_pictures_with_guidance_and_negative_prompts(family):
    pipe = pipeline_of(random_base(family))
    concept = _concept(random_base(family))

    def draw(**options):
        return pipe(
            PROMPTS[0],
            negative_prompt="small",
            num_inference_steps=2,
            num_images_per_prompt=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **options,
        ).images

    with mos.apply(pipe, concept) as held:
        assert held.words == ("<alice-tom>",)
        strong = draw()
        # SD 1.x pipelines of diffusers 0.42 cannot skip layers with transformers 5, whatever is applied.
        skipped = draw(clip_skip=1) if family == "sdxl" else None
    with mos.apply(pipe, concept, scale=0.0):
        words_only = draw()
    assert strong.shape == (2, 3, 32, 32)
    assert (strong - words_only).abs().max() > 1e-3
    assert skipped is None or (strong - skipped).abs().max() > 1e-4


def test_several_concepts_are_the_sum_of_their_updates():
    base = random_base("sd1")
    first, second = _concept(base), _concept(base, "bob/rex", seed=1)
    pipe = pipeline_of(random_base("sd1"))
    layer = base.facts.attention_linears["unet"][0]
    weight = pipe.unet.get_submodule(layer).weight.detach().clone()
    with mos.apply(pipe, [first, second]) as held:
        assert held.words == ("<alice-tom>", "<bob-rex>")
        change = pipe.unet.get_submodule(layer).weight.detach() - weight
    expected = first.edlora.linears["unet"][layer].delta() + second.edlora.linears["unet"][layer].delta()
    torch.testing.assert_close(change, expected, atol=1e-6, rtol=1e-4)


def test_another_base_is_refused_unless_asked_for():
    concept = _concept(random_base("sd1", seed=1))
    pipe = pipeline_of(random_base("sd1"))
    with pytest.raises(BadInputError, match="any_base=True"):
        mos.apply(pipe, concept)
    mos.apply(pipe, concept, any_base=True).remove()


def test_applying_twice_is_refused():
    base = random_base("sd1")
    pipe = pipeline_of(base)
    held = mos.apply(pipe, _concept(random_base("sd1")))
    with pytest.raises(ConflictError, match=r"remove\(\)"):
        mos.apply(pipe, _concept(random_base("sd1")))
    held.remove()
    held.remove()
    mos.apply(pipe, _concept(random_base("sd1"))).remove()


def test_an_offloaded_pipeline_is_refused():
    pipe = pipeline_of(random_base("sd1"))
    pipe.unet._hf_hook = object()  # what accelerate leaves on an offloaded module
    with pytest.raises(BadInputError, match="offloads its parts"):
        mos.apply(pipe, _concept(random_base("sd1")))


def test_importing_mos_loads_no_torch():
    code = "import mos, sys; assert 'torch' not in sys.modules; assert 'apply' in dir(mos); print(mos.__all__)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert "load_concept" in result.stdout
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mos.nothing


def test_a_half_precision_pipeline_is_known_as_the_same_base():
    concept = _concept(random_base("sd1"))
    pipe = pipeline_of(random_base("sd1")).to(torch.float16)
    with mos.apply(pipe, concept), torch.no_grad():
        context, _ = _encode(pipe, PROMPTS)
    assert context.dtype == torch.float16
    assert context.isfinite().all()
