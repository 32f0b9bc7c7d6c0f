import numpy as np
import pytest
import torch

from mos.edlora.adapter import Adapter, applied
from mos.edlora.lora import LowRank
from mos.edlora.tokens import PromptEncoder, PromptError
from mos.errors import BadInputError
from mos.random_base import random_base
from mos.sampling import Region, SamplingConfig, denoise, denoising, sample
from mos.sampling.conditioning import Conditioning
from mos.sampling.sampler import encode_scene
from mos.sampling.schedulers import SHORT_NAMES, make_scheduler, starting_noise
from tests.mos.adapters import random_adapter

QUICK = SamplingConfig(num_inference_steps=3, guidance_scale=4.0)
LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)


def pixels(picture):
    return np.asarray(picture, dtype=np.int16)


def difference(one, other):
    return np.abs(pixels(one) - pixels(other)).max()


def unlike(one, other):
    return np.abs(pixels(one) - pixels(other)).mean()


@pytest.fixture(scope="module")
def adapter(tiny_base):
    return random_adapter(tiny_base, "<alice-cat>", "<bob-dog>")


def test_a_picture_depends_on_its_prompt_and_seed_and_not_on_its_batch(tiny_base, adapter):
    prompts = ["a <alice-cat>", "a mug", "a <bob-dog> on the beach", "a mug", "a mug"]
    seeds = [1, 2, 3, 2, 7]
    together = sample(tiny_base, adapter, prompts, seeds=seeds, config=QUICK)
    small = SamplingConfig(num_inference_steps=3, guidance_scale=4.0, batch_size=2)
    in_twos = sample(tiny_base, adapter, prompts, seeds=seeds, config=small)
    alone = sample(tiny_base, adapter, prompts[2:3], seeds=seeds[2:3], config=QUICK)
    assert max(map(difference, together, in_twos)) <= 1
    assert difference(together[2], alone[0]) <= 1
    assert difference(together[1], together[3]) <= 1
    assert difference(together[3], together[4]) > 1


def test_the_base_is_bit_equal_after_sampling(tiny_base, adapter):
    before = {name: value.clone() for name, value in tiny_base.unet.state_dict().items()}
    processors = dict(tiny_base.unet.attn_processors)
    region = Region(prompt="a <bob-dog>", box=LEFT, adapter=random_adapter(tiny_base, "<bob-dog>", seed=3))
    sample(tiny_base, adapter, ["a mug"], seeds=[1], regions=[region], config=QUICK)
    assert all(torch.equal(value, before[name]) for name, value in tiny_base.unet.state_dict().items())
    assert all(tiny_base.unet.attn_processors[name] is was for name, was in processors.items())
    assert not any(module._forward_hooks for module in tiny_base.unet.modules())


def test_works_without_an_adapter_and_at_guidance_one(tiny_base):
    single = SamplingConfig(num_inference_steps=3, guidance_scale=1.0)
    plain = sample(tiny_base, None, ["a cat"], seeds=[1], config=single)
    region = Region(prompt="a dog", box=LEFT, negative_prompt="a mug")
    drawn = sample(tiny_base, None, ["a cat"], seeds=[1], regions=[region], config=single)
    assert plain[0].size == (32, 32)
    assert difference(plain[0], drawn[0]) > 0


def test_guidance_one_runs_a_single_branch(tiny_base):
    encoder = PromptEncoder(tiny_base)
    batches = []
    handle = tiny_base.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    with handle:
        for guidance in (1.0, 3.0):
            denoise(
                tiny_base,
                encoder.encode(["a cat"]),
                encoder.encode([""]),
                starting_noise([1], (4, 8, 8)),
                SamplingConfig(num_inference_steps=1, guidance_scale=guidance),
            )
    assert batches == [1, 2]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_denoise_agrees_with_the_diffusers_pipeline(family):
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    base = random_base(family, seed=2)
    scheduler = DPMSolverMultistepScheduler.from_config(base.scheduler.config, steps_offset=1)
    parts = {"vae": base.vae, "unet": base.unet, "scheduler": scheduler}
    encoder = PromptEncoder(base)
    positive, negative = encoder.encode(["a red cat"]), encoder.encode(["a dog"])
    if family == "sdxl":
        pipeline = StableDiffusionXLPipeline(
            **parts,
            text_encoder=base.text_encoders["text_encoder"],
            text_encoder_2=base.text_encoders["text_encoder_2"],
            tokenizer=base.tokenizer,
            tokenizer_2=base.tokenizer,
            add_watermarker=False,
        )
        pooled = {"pooled_prompt_embeds": positive.pooled, "negative_pooled_prompt_embeds": negative.pooled}
    else:
        pipeline = StableDiffusionPipeline(
            **parts,
            text_encoder=base.text_encoder,
            tokenizer=base.tokenizer,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pooled = {}
    pipeline.set_progress_bar_config(disable=True)
    noise = starting_noise([5], (4, 8, 8))
    wanted = pipeline(
        prompt_embeds=positive.context[:, 0],
        negative_prompt_embeds=negative.context[:, 0],
        **pooled,
        latents=noise,
        num_inference_steps=6,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    config = SamplingConfig(num_inference_steps=6, guidance_scale=3.0)
    got = denoise(base, positive, negative, noise, config)
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(got, noise, atol=0.1)


def test_lora_scale_zero_keeps_the_words_and_drops_the_updates(tiny_base, adapter):
    bare = Adapter(linears={}, vocabulary=adapter.vocabulary)
    at_zero = sample(tiny_base, adapter, ["a <alice-cat>"], seeds=[1], config=QUICK, scale=0.0)
    wanted = sample(tiny_base, bare, ["a <alice-cat>"], seeds=[1], config=QUICK)
    at_one = sample(tiny_base, adapter, ["a <alice-cat>"], seeds=[1], config=QUICK)
    assert difference(at_zero[0], wanted[0]) == 0
    assert difference(at_zero[0], at_one[0]) > 1


@pytest.mark.parametrize(
    "name", [*sorted(SHORT_NAMES), "base", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]
)
def test_any_scheduler_by_name_draws_the_same_picture_in_any_batch(tiny_base, name):
    config = SamplingConfig(num_inference_steps=4, guidance_scale=2.0, scheduler=name)
    pair = sample(tiny_base, None, ["a cat", "a dog"], seeds=[1, 2], config=config)
    alone = sample(tiny_base, None, ["a dog"], seeds=[2], config=config)
    assert difference(pair[1], alone[0]) <= 1


def test_schedulers_keep_the_prediction_type_of_the_base():
    base = random_base("sd2")
    assert base.facts.prediction_type == "v_prediction"
    assert make_scheduler("euler", base.scheduler).config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", ["nonsense", "UNet2DConditionModel", "FlowScheduler"])
def test_unknown_scheduler_gets_one_line(tiny_base, name):
    with pytest.raises(BadInputError, match="unknown; use base"):
        make_scheduler(name, tiny_base.scheduler)


def test_regions_know_the_words_of_the_adapter_only(tiny_base, adapter):
    region = Region(prompt="a <carol-tree>", box=LEFT)
    with pytest.raises(PromptError, match="unknown word <carol-tree>"):
        sample(tiny_base, adapter, ["a mug"], seeds=[1], regions=[region], config=QUICK)


def test_counts_and_sizes_that_do_not_fit_get_one_line(tiny_base):
    with pytest.raises(BadInputError, match="2 prompts but 1 seeds"):
        sample(tiny_base, None, ["a", "b"], seeds=[1], config=QUICK)
    with pytest.raises(BadInputError, match="height is 30"):
        sample(tiny_base, None, ["a"], seeds=[1], config=SamplingConfig(height=30))
    with pytest.raises(BadInputError, match="num_inference_steps is 0; guidance_scale is 0.5".replace("; ", ".*")):
        SamplingConfig(num_inference_steps=0, guidance_scale=0.5)


def test_other_picture_sizes_work_with_regions(tiny_base):
    config = SamplingConfig(num_inference_steps=2, height=40, width=56)
    region = Region(prompt="a dog", box=LEFT, soft_edge=0.2)
    (picture,) = sample(tiny_base, None, ["a cat"], seeds=[1], regions=[region], config=config)
    assert picture.size == (56, 40)


def run_latents(base, adapter, regions, prompt="a mug", config=QUICK, seed=4, scale=1.0):
    with applied(base, adapter, scale=scale):
        positive, negative = encode_scene(base, adapter, [prompt], "", regions, config=config, scale=scale)
        noise = starting_noise([seed], (4, 8, 8))
        return denoise(base, positive.rows([0]), negative.rows([0]), noise, config, regions=regions, scale=scale)


@pytest.mark.parametrize("guard", ["none", "self-attention", "blend", "windows"])
def test_unfused_adapter_over_the_whole_picture_equals_the_adapter_applied(tiny_base, guard):
    one = random_adapter(tiny_base, "<alice-cat>", seed=5)
    config = SamplingConfig(num_inference_steps=3, guidance_scale=4.0, bleeding_guard=guard)
    region = Region(prompt="a <alice-cat>", box=(0, 0, 1, 1), adapter=one)
    for scale in (1.0, 0.5):
        got = run_latents(tiny_base, None, [region], config=config, scale=scale)
        wanted = run_latents(tiny_base, one, [], "a <alice-cat>", scale=scale)
        # the negative branch of plain sampling sees the adapter's text encoder too, as the region's does
        assert torch.allclose(got, wanted, atol=1e-3)


def test_unfused_updates_match_dense_weights_chosen_cell_by_cell(tiny_base):
    """Oracle: in every tuned linear, run each concept's dense weights and pick rows by region."""
    from mos.layers import linear_module

    adapters = [random_adapter(tiny_base, "<alice-cat>", seed=5), random_adapter(tiny_base, "<bob-dog>", seed=6)]
    regions = [
        Region(prompt="a <alice-cat>", box=LEFT, adapter=adapters[0]),
        Region(prompt="a <bob-dog>", box=(0.5, 0, 1, 0.5), adapter=adapters[1]),
    ]
    got = run_latents(tiny_base, None, regions)

    def dense_hook(name):
        module = linear_module(tiny_base.unet, name)
        outputs = [module.weight] + [module.weight + adapter.linears["unet"][name].delta() for adapter in adapters]
        by_prompt = "attn2.to_k" in name or "attn2.to_v" in name

        def hook(module, args, output):
            rows = args[0]
            bias = 0 if module.bias is None else module.bias
            apart = [rows @ weight.T + bias for weight in outputs]
            if by_prompt:
                return torch.stack([apart[row % 3][row] for row in range(len(rows))])
            side = int(rows.shape[1] ** 0.5)
            chosen = apart[0].unflatten(1, (side, side)).clone()
            half = side // 2
            chosen[:, :, :half] = apart[1].unflatten(1, (side, side))[:, :, :half]
            chosen[:, :half, half:] = apart[2].unflatten(1, (side, side))[:, :half, half:]
            return chosen.flatten(1, 2)

        return module.register_forward_hook(hook)

    positive, negative = encode_scene(tiny_base, None, ["a mug"], "", regions, config=QUICK)
    bare = [Region(prompt=region.prompt, box=region.box) for region in regions]
    handles = [dense_hook(name) for name in adapters[0].linears["unet"]]
    try:
        wanted = denoise(tiny_base, positive, negative, starting_noise([4], (4, 8, 8)), QUICK, regions=bare)
    finally:
        for handle in handles:
            handle.remove()
    assert torch.allclose(got, wanted, atol=1e-3)
    assert not torch.allclose(got, run_latents(tiny_base, adapters[0], [], "a <alice-cat>"), atol=0.1)


def test_adapter_of_another_shape_is_refused_before_anything_changes(tiny_base):
    broken = random_adapter(tiny_base, "<alice-cat>")
    name = next(iter(broken.linears["unet"]))
    linears = {"unet": {name: LowRank(up=torch.zeros(3, 1), down=torch.zeros(1, 3))}}
    region = Region(prompt="a cat", box=LEFT, adapter=Adapter(linears=linears, vocabulary=broken.vocabulary))
    with pytest.raises(BadInputError, match="adapter update of unet"):
        sample(tiny_base, None, ["a mug"], seeds=[1], regions=[region], config=QUICK)


@pytest.mark.parametrize("guard", ["self-attention", "blend", "windows"])
def test_guard_changes_the_picture_and_none_of_it_when_switched_off(tiny_base, guard):
    regions = [Region(prompt="a cat", box=LEFT), Region(prompt="a dog", box=RIGHT)]

    def draw(**options):
        config = SamplingConfig(num_inference_steps=4, guidance_scale=4.0, **options)
        return run_latents(tiny_base, None, regions, config=config)

    plain = draw()
    assert torch.equal(draw(bleeding_guard=guard, guard_until=0.0), plain)
    assert not torch.allclose(draw(bleeding_guard=guard, guard_until=0.5), plain, atol=1e-3)


def test_blended_steps_equal_drawing_each_prompt_apart_and_mixing_by_region(tiny_base):
    regions = [Region(prompt="a cat", box=LEFT), Region(prompt="a dog", box=RIGHT)]
    config = SamplingConfig(
        num_inference_steps=1, guidance_scale=4.0, bleeding_guard="blend", guard_until=1.0, scheduler="ddim"
    )
    got = run_latents(tiny_base, None, regions, config=config)
    cat = run_latents(tiny_base, None, [], "a cat", config=config)
    dog = run_latents(tiny_base, None, [], "a dog", config=config)
    assert torch.allclose(got[..., :4], cat[..., :4], atol=1e-4)
    assert torch.allclose(got[..., 4:], dog[..., 4:], atol=1e-4)


def test_windows_equal_drawing_each_region_as_a_picture_of_its_own(tiny_base):
    adapter = random_adapter(tiny_base, "<bob-dog>", seed=3)
    regions = [Region(prompt="a cat", box=LEFT), Region(prompt="a <bob-dog>", box=RIGHT, adapter=adapter)]
    config = SamplingConfig(num_inference_steps=2, guidance_scale=4.0, bleeding_guard="windows", guard_until=1.0)
    positive, negative = encode_scene(tiny_base, None, ["a mug"], "", regions, config=config)
    noise = starting_noise([4], (4, 8, 8))
    got = denoise(tiny_base, positive, negative, noise, config, regions=regions)

    def apart(adapter, prompt, columns):
        with applied(tiny_base, adapter):
            positive, negative = encode_scene(tiny_base, adapter, [prompt], "", [], config=config)
            return denoise(tiny_base, positive, negative, noise[..., columns], config)

    assert torch.allclose(got[..., :4], apart(None, "a cat", slice(0, 4)), atol=1e-3)
    assert torch.allclose(got[..., 4:], apart(adapter, "a <bob-dog>", slice(4, 8)), atol=1e-3)


def test_after_the_windows_regions_share_a_picture_but_do_not_look_at_each_other(tiny_base, monkeypatch):
    seen = []
    predict = denoising._Predictor._predict

    def spy(self, inputs, timestep, progress, window):
        seen.append((progress, self._state.alone, self._state.is_guarded))
        return predict(self, inputs, timestep, progress, window)

    monkeypatch.setattr(denoising._Predictor, "_predict", spy)
    regions = [Region(prompt="a cat", box=LEFT), Region(prompt="a dog", box=RIGHT)]
    config = SamplingConfig(num_inference_steps=4, bleeding_guard="windows", guard_until=0.5)
    run_latents(tiny_base, None, regions, config=config)
    windows = [(progress, region, False) for progress in (0.0, 0.25) for region in (1, 2)]
    assert seen == [*windows, (0.5, None, True), (0.75, None, True)]


def test_every_guard_has_a_time_that_suits_it():
    assert SamplingConfig(bleeding_guard="windows").guarded_part == 0.8
    assert SamplingConfig(bleeding_guard="self-attention").guarded_part == 0.4
    assert SamplingConfig(bleeding_guard="windows", guard_until=0.3).guarded_part == 0.3


def test_windows_follow_a_sketch_and_leave_the_rest_to_the_global_prompt(tiny_base):
    """In a window the condition's maps are cut to it: the same as the sketch's own part for that part alone."""
    from mos.sampling.condition import Condition
    from tests.mos.sampling.test_condition import tiny_adapter

    sketch = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1))
    config = SamplingConfig(num_inference_steps=1, guidance_scale=1.0, bleeding_guard="windows", guard_until=1.0)
    regions = [Region(prompt="a cat", box=RIGHT)]
    positive, _ = encode_scene(tiny_base, None, ["a mug"], "", regions, config=config)
    noise = starting_noise([4], (4, 8, 8))
    drawn = Condition(adapter=tiny_adapter(), picture=sketch)
    got = denoise(tiny_base, positive, None, noise, config, regions=regions, conditions=[drawn])
    bare = denoise(tiny_base, positive, None, noise, config, regions=regions)
    whole, _ = encode_scene(tiny_base, None, ["a mug"], "", [], config=config)
    plain = denoise(tiny_base, whole, None, noise, config, conditions=[drawn])
    assert torch.allclose(got[..., :4], plain[..., :4], atol=1e-4)
    assert not torch.allclose(got[..., 4:], bare[..., 4:], atol=1e-4)


def test_conditioning_with_a_missing_segment_is_a_bug_that_is_caught(tiny_base):
    encoding = PromptEncoder(tiny_base).encode(["a cat"])
    with pytest.raises(ValueError, match="1 segments for 1 regions"):
        denoise(
            tiny_base,
            Conditioning.of(encoding),
            None,
            starting_noise([1], (4, 8, 8)),
            QUICK,
            regions=[Region(prompt="a", box=LEFT)],
        )
