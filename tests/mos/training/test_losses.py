import pytest
import torch

from mos.random_base import random_base
from mos.smallworld.base import timestep_weight
from mos.training.losses import (
    AttentionRecord,
    add_noise,
    attention_penalties,
    masked_errors,
    min_snr_weights,
    prediction_target,
)


@pytest.fixture(scope="module")
def drawn():
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(6, 4, 8, 8, generator=generator) for _ in range(2))
    return latents, noise, torch.tensor([0, 10, 300, 500, 900, 999])


def test_noising_and_targets_equal_diffusers(tiny_base, drawn):
    latents, noise, timesteps = drawn
    scheduler = tiny_base.scheduler
    alphas = scheduler.alphas_cumprod
    torch.testing.assert_close(
        add_noise(latents, noise, alphas, timesteps), scheduler.add_noise(latents, noise, timesteps)
    )
    torch.testing.assert_close(
        prediction_target(latents, noise, alphas, timesteps, "v_prediction"),
        scheduler.get_velocity(latents, noise, timesteps),
    )
    assert prediction_target(latents, noise, alphas, timesteps, "epsilon") is noise


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_equal_diffusers_recipe(tiny_base, drawn, prediction):
    from diffusers.training_utils import compute_snr

    timesteps = drawn[2]
    snr = compute_snr(tiny_base.scheduler, timesteps)
    expected = torch.clamp(snr, max=5.0) / (snr if prediction == "epsilon" else snr + 1)
    found = min_snr_weights(tiny_base.scheduler.alphas_cumprod, timesteps, 5.0, prediction)
    torch.testing.assert_close(found, expected)


def test_a_power_of_the_weight_is_the_small_worlds_own_weight(tiny_base):
    alphas = tiny_base.scheduler.alphas_cumprod
    found = min_snr_weights(alphas, torch.arange(len(alphas)), 5.0, "v_prediction", 0.5)
    torch.testing.assert_close(found, timestep_weight(alphas, 5.0, 0.5))


def test_the_masked_error_sums_channels_and_averages_weighted_pixels(drawn):
    latents, noise, _ = drawn
    everywhere = torch.ones(6, 1, 8, 8)
    expected = 4 * torch.nn.functional.mse_loss(latents, noise, reduction="none").mean(dim=(1, 2, 3))
    torch.testing.assert_close(masked_errors(latents, noise, everywhere), expected)
    half = everywhere.clone()
    half[:, :, :, 4:] = 0
    changed = latents.clone()
    changed[..., 4:] += 100
    torch.testing.assert_close(masked_errors(changed, noise, half), masked_errors(latents, noise, half))


def attention_record(maps):
    """A record whose two words' maps [b, queries] are given, one head, other tokens in between."""
    weights = torch.zeros(maps[0].shape[0], 1, maps[0].shape[1], 5)
    weights[:, 0, :, 2], weights[:, 0, :, 3] = maps
    record = AttentionRecord([(2, 3)] * maps[0].shape[0], torch.device("cpu"))
    record.add(weights)
    return record


def test_attention_inside_the_mask_costs_nothing_and_outside_it_does():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    inside, outside = mask.flatten(1) * 0.5, (1 - mask).flatten(1) * 0.25
    assert attention_penalties(attention_record((inside, inside)), mask, "outside", (4, 4)).item() == 0
    assert attention_penalties(attention_record((inside, inside)), mask, "full-identity", (4, 4)).item() == 0
    both = attention_penalties(attention_record((outside, outside)), mask, "outside", (4, 4))
    assert both.item() == pytest.approx(2.0)
    one_cell = torch.zeros(1, 16)
    one_cell[0, 0] = 0.3
    covering = attention_penalties(attention_record((inside, one_cell)), mask, "full-identity", (4, 4))
    assert covering.item() == pytest.approx(7 / 16)


def test_every_resolution_counts_alike():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    record = attention_record(((1 - mask).flatten(1), mask.flatten(1)))
    small = torch.zeros(1, 1, 4, 5)
    small[0, 0, [0, 2], 2] = 1
    small[0, 0, [0, 2], 3] = 1
    record.add(small)
    assert attention_penalties(record, mask, "outside", (4, 4)).item() == pytest.approx((1 + 0) / 2)


def test_v_prediction_is_read_from_the_base():
    assert random_base("sd2").facts.prediction_type == "v_prediction"
