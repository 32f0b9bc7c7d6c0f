import pytest
import torch
from diffusers import T2IAdapter
from PIL import Image

from mos.edlora.tokens import PromptEncoder
from mos.sampling import Condition, Region, SamplingConfig, denoise
from mos.sampling.condition import ConditionError, condition_picture
from mos.sampling.conditioning import Conditioning
from mos.sampling.schedulers import starting_noise

QUICK = SamplingConfig(num_inference_steps=3, guidance_scale=3.0)


def tiny_adapter(seed=0, channels=(16, 32), factor=4, colours=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T2IAdapter(in_channels=colours, channels=channels, num_res_blocks=1, downscale_factor=factor).eval()


def sketch():
    return (torch.arange(32 * 32).reshape(1, 32, 32) % 7 == 0).float()


def key_pose():
    """Limbs in three colours, as key poses are drawn."""
    return torch.stack([sketch()[0], sketch()[0].T, torch.eye(32)])


def draw(base, conditions=(), regions=(), config=QUICK):
    encoder = PromptEncoder(base)
    encodings = [encoder.encode(["a cat"])] + [encoder.encode([region.prompt]) for region in regions]
    negatives = [encoder.encode([""])] * len(encodings)
    return denoise(
        base,
        Conditioning(segments=tuple(encoding.context for encoding in encodings)),
        Conditioning(segments=tuple(encoding.context for encoding in negatives)),
        starting_noise([3], (4, 8, 8)),
        config,
        regions=regions,
        conditions=conditions,
    )


@pytest.mark.parametrize("picture", [sketch(), key_pose()], ids=["sketch", "key pose"])
def test_condition_agrees_with_the_diffusers_adapter_pipeline(tiny_base, picture):
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionAdapterPipeline

    adapter = tiny_adapter(colours=len(picture))
    pipeline = StableDiffusionAdapterPipeline(
        vae=tiny_base.vae,
        unet=tiny_base.unet,
        scheduler=DPMSolverMultistepScheduler.from_config(tiny_base.scheduler.config, steps_offset=1),
        adapter=adapter,
        text_encoder=tiny_base.text_encoder,
        tokenizer=tiny_base.tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    encoder = PromptEncoder(tiny_base)
    wanted = pipeline(
        prompt_embeds=encoder.encode(["a cat"]).context[:, 0],
        negative_prompt_embeds=encoder.encode([""]).context[:, 0],
        image=picture[None],
        latents=starting_noise([3], (4, 8, 8)),
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=3.0,
        adapter_conditioning_scale=0.8,
        output_type="latent",
    ).images
    got = draw(tiny_base, [Condition(adapter=adapter, picture=picture, weight=0.8)])
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(got, draw(tiny_base), atol=1e-2)


def test_weight_zero_is_no_condition(tiny_base):
    off = [
        Condition(adapter=tiny_adapter(), picture=sketch(), weight=0.0),
        Condition(adapter=tiny_adapter(1), picture=sketch(), until=0.0),
    ]
    assert torch.equal(draw(tiny_base, off), draw(tiny_base))


def test_region_weight_acts_inside_its_region_only(tiny_base):
    condition = [Condition(adapter=tiny_adapter(), picture=sketch())]

    def regions(weight):
        return [Region(prompt="a cat", box=(0, 0, 1, 1), condition_weight=weight)]

    assert torch.allclose(draw(tiny_base, condition, regions(0.0)), draw(tiny_base, (), regions(1.0)), atol=1e-5)
    half = [Condition(adapter=tiny_adapter(), picture=sketch(), weight=0.5)]
    assert torch.allclose(draw(tiny_base, condition, regions(0.5)), draw(tiny_base, half, regions(1.0)), atol=1e-5)


def test_two_conditions_add_up(tiny_base):
    twice = [Condition(adapter=tiny_adapter(), picture=sketch(), weight=0.5)] * 2
    once = [Condition(adapter=tiny_adapter(), picture=sketch())]
    assert torch.allclose(draw(tiny_base, twice), draw(tiny_base, once), atol=1e-5)


def test_until_ends_a_condition_after_its_share_of_the_steps(tiny_base):
    def at(until):
        return draw(tiny_base, [Condition(adapter=tiny_adapter(), picture=sketch(), until=until)])

    assert torch.equal(at(0.4), at(0.6))  # two of three steps each
    assert not torch.allclose(at(0.3), at(0.4), atol=1e-4)
    assert not torch.allclose(at(0.6), at(0.7), atol=1e-4)


def test_adapters_that_do_not_fit_get_one_line(tiny_base):
    with pytest.raises(ConditionError, match=r"\[16, 16\] channels, the base needs \[16, 32\]"):
        draw(tiny_base, [Condition(adapter=tiny_adapter(channels=(16, 16)), picture=sketch())])
    with pytest.raises(ConditionError, match="16x16 feature map"):
        draw(tiny_base, [Condition(adapter=tiny_adapter(factor=2), picture=sketch())])
    with pytest.raises(ConditionError, match="expected"):
        Condition(adapter=tiny_adapter(), picture=sketch()[0])


def test_sketch_is_resized_to_the_picture():
    picture = condition_picture(Image.new("RGB", (10, 20), (255, 255, 255)), 1, width=32, height=16)
    assert picture.shape == (1, 16, 32)
    assert picture.min() == 1.0
    pose = condition_picture(Image.new("RGB", (10, 20), (255, 0, 0)), 3, width=32, height=16)
    assert pose.mean(dim=(1, 2)).tolist() == [1.0, 0.0, 0.0]
