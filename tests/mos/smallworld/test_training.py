"""Training of the small world's parts: their losses, their schedules, checkpoints that go on bit by bit."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from mos.smallworld.architecture import build_autoencoder, build_text_encoder, build_unet
from mos.smallworld.autoencoder import drop_posterior_noise, normalise_latents, reconstruction_loss
from mos.smallworld.base import BaseConfig, BaseTraining, LatentCache, learning_rate, timestep_weight
from mos.smallworld.decoder import DecoderConfig, DecoderTraining, decoder_rate, detail_loss
from mos.smallworld.pictures import SHARD_SIZE
from mos.smallworld.pretrain import main
from mos.smallworld.tokenizer import build_tokenizer
from mos.smallworld.world import World


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    (directory / "latents").mkdir()
    latents = np.random.default_rng(0).standard_normal((SHARD_SIZE, 8, 16, 16)).astype(np.float16)
    np.save(directory / "latents" / "latents-0000.npy", latents)
    return LatentCache(directory, range(1), seed=3, world=World())


def test_normalised_latents_are_standard_and_decode_to_the_same_pictures():
    torch.manual_seed(1)
    model = build_autoencoder().eval()
    pictures = torch.randint(0, 255, (24, 64, 64, 3), dtype=torch.uint8)
    images = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        before = model.encode(images).latent_dist
        decoded = model.decode(before.mean).sample
        deviation = before.mean.std((0, 2, 3))
        normalise_latents(model, pictures)
        after = model.encode(images).latent_dist
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.std, before.std / deviation.view(1, 8, 1, 1), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-3)
    assert isinstance(model, AutoencoderKL)
    assert model.config.scaling_factor == 1.0


def test_what_the_encoder_samples_is_the_mean_that_the_base_learns():
    torch.manual_seed(1)
    model = build_autoencoder().eval()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        mean = model.encode(images).latent_dist.mean
        drop_posterior_noise(model)
        after = model.encode(images).latent_dist
    assert torch.equal(after.mean, mean)
    torch.testing.assert_close(after.sample(torch.Generator().manual_seed(0)), mean, atol=1e-5, rtol=0)


def decoder_run(training, steps, seed=3):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    pictures = torch.randint(0, 255, (2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return [training.train_step(latents, pictures, generator) for _ in range(steps)]


def test_the_decoder_learns_and_the_latents_keep_their_meaning():
    torch.manual_seed(1)
    training = DecoderTraining(build_autoencoder(), DecoderConfig(steps=12, warmup=1))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    before = training.model.encode(images).latent_dist.mean
    losses = decoder_run(training, 12)
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(training.model.encode(images).latent_dist.mean, before)


def test_a_decoder_goes_on_from_its_checkpoint_as_if_never_stopped():
    config = DecoderConfig(steps=8, warmup=1)
    torch.manual_seed(1)
    whole, first = (DecoderTraining(model, config) for model in (build_autoencoder(), build_autoencoder()))
    first.model.load_state_dict(whole.model.state_dict())
    decoder_run(whole, 4)
    decoder_run(first, 4)
    second = DecoderTraining(build_autoencoder(), config)
    second.load_state_dict(first.state_dict())
    assert decoder_run(second, 4, seed=4) == decoder_run(whole, 4, seed=4)


def test_an_outline_weighs_more_than_a_sky():
    target = torch.full((1, 3, 8, 8), -1.0)
    target[..., 1] = 1.0
    at_the_line, in_the_sky = target.clone(), target.clone()
    at_the_line[..., 1] -= 0.5
    in_the_sky[..., 6] += 0.5
    assert float(detail_loss(target, target, 8.0)) == 0
    assert float(detail_loss(at_the_line, target, 0.0)) == pytest.approx(float(detail_loss(in_the_sky, target, 0.0)))
    found = float(detail_loss(at_the_line, target, 8.0)) / float(detail_loss(in_the_sky, target, 8.0))
    assert found == pytest.approx(9.0)


def test_a_decoder_rate_warms_up_and_falls_to_nearly_nothing():
    config = DecoderConfig(steps=100, warmup=10, lr=1.0)
    assert [decoder_rate(step, config) for step in (0, 50, 99)] == pytest.approx([0.1, 0.5, 0.0], abs=0.01)


def test_a_colour_shift_costs_even_where_brightness_stays():
    grey = torch.zeros(1, 3, 8, 8)
    tinted = grey.clone()
    tinted[:, 0], tinted[:, 1] = 0.2, -0.2 * 0.299 / 0.587
    assert float(reconstruction_loss(grey, grey)) == 0
    assert float(reconstruction_loss(tinted, grey)) > 0.05


def test_the_weight_of_a_timestep_is_the_formula():
    alphas = torch.tensor([0.99, 0.5, 0.1])
    torch.testing.assert_close(timestep_weight(alphas, 5.0, 1.0), torch.tensor([5 / 100, 0.5, 0.1]))
    torch.testing.assert_close(timestep_weight(alphas, 5.0, 0.0), torch.ones(3))


def test_the_rate_warms_up_stays_and_falls():
    config = BaseConfig(steps=1000, warmup=100, decay_share=0.5, lr=1.0)
    rates = [learning_rate(step, config) for step in (0, 49, 300, 499, 750, 999)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 1.0, 0.5, 0.01], abs=0.01)


def test_the_two_patterns_told_apart_last_can_be_shown_more_often_and_are_then_named(cache):
    _, captions = cache.draw(np.random.default_rng(1), 32, 1.0, 1.0)
    named = [caption for caption in captions if "dotted" in caption or "checked" in caption]
    assert not any("striped" in caption or "plain" in caption for caption in captions)
    assert len(named) >= 16
    _, captions = cache.draw(np.random.default_rng(1), 32, 1.0, 0.0)
    assert not any("dotted" in caption or "checked" in caption for caption in captions)


def test_captions_are_new_on_every_visit_and_latents_are_not(cache):
    assert len(cache) == SHARD_SIZE
    latents, captions = cache.draw(np.random.default_rng(1), 6, 0.5)
    again, others = cache.draw(np.random.default_rng(1), 6, 0.5)
    assert latents.shape == (6, 8, 16, 16)
    assert torch.equal(latents, again)
    assert captions == others
    assert len({*captions}) == 6


def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(cache):
    config = BaseConfig(steps=8, batch=2, warmup=2, average_every=2)

    def steps(training, first, last):
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            training.train_step(*cache.draw(np.random.default_rng(step), 2, 0.5), generator)

    straight = BaseTraining(config, seed=5)
    steps(straight, 0, 4)
    stopped = BaseTraining(config, seed=5)
    steps(stopped, 0, 2)
    resumed = BaseTraining(config, seed=99)
    resumed.load_state_dict(stopped.state_dict())
    steps(resumed, 2, 4)
    assert resumed.step == 4
    for name, value in straight.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_the_base_has_seven_cross_attention_layers_and_the_true_end_of_text():
    tokenizer = build_tokenizer()
    names = [name for name, _ in build_unet().named_modules() if name.endswith("attn2")]
    assert len(names) == 7
    assert build_text_encoder(tokenizer).config.eos_token_id == tokenizer.eos_token_id


def test_pretrain_refuses_a_share_above_one(tmp_path, capsys):
    (tmp_path / "autoencoder").mkdir()
    assert main(["--stage", "base", "--out", str(tmp_path), "--alike-share", "1.5"]) == 3
    assert "between 0 and 1" in capsys.readouterr().err


def test_pretrain_says_what_is_missing(tmp_path, capsys):
    assert main(["--stage", "base", "--out", str(tmp_path)]) == 4
    assert "autoencoder" in capsys.readouterr().err
    assert main(["--from-weights", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 4
    assert main(["--stage", "probe", "--steps", "0", "--out", str(tmp_path)]) == 3


def test_what_was_trained_is_never_replaced_by_accident(tmp_path, capsys):
    (tmp_path / "base.ckpt").touch()
    assert main(["--out", str(tmp_path)]) == 5
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "base.ckpt").read_bytes() == b""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_stage_runs_in_order_and_exports_with_digests(tmp_path):
    world = tmp_path / "world.toml"
    world.write_text('classes = ["cat", "mug"]\nbackdrops = ["beach", "space"]\n')
    out = tmp_path / "run"
    for stage in ("autoencoder", "decoder", "probe", "scorer", "base"):
        arguments = ["--stage", stage, "--steps", "4", "--workers", "2", "--shards", "1", "--world", str(world)]
        assert main([*arguments, "--out", str(out)]) == 0
    assert main(["--stage", "probe", "--out", str(out)]) == 5
    weights = tmp_path / "weights"
    assert main(["--stage", "export", "--out", str(out), "--export", str(weights)]) == 0
    record = json.loads((tmp_path / "weights" / "record.json").read_text())
    assert len(record["sha256"]) > 12
    assert (tmp_path / "weights" / "base" / "model_index.json").exists()
