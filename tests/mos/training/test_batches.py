"""What a step is fed: cached latents, noise, loss weights, pictures that count several times."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from mos.training import SlotSpec, Trainer, TrainingConfig, concept_data
from mos.training.batches import Feed
from mos.training.data import draw_views
from tests.mos.training.concepts import FAST, made_up_concept


def test_latents_from_cached_moments_are_those_of_encoding_the_view_anew(tiny_base):
    data, config = made_up_concept("cat", size=(48, 32)), TrainingConfig(views_per_picture=3)
    feed = Feed(tiny_base, data, config)
    views = draw_views(data, config, tiny_base.facts.resolution, torch.Generator().manual_seed(config.seed + 1))
    assert len(views) == 12
    posterior = torch.randn(2, *feed.moments.mean.shape[1:])
    batch = feed._batch([3, 7], ["<TOK>", "<TOK>"], posterior, posterior, torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        encoded: DiagonalGaussianDistribution = tiny_base.vae.encode(
            torch.stack([views[3].pixels, views[7].pixels])
        ).latent_dist
    expected = (encoded.mean + encoded.std * posterior) * tiny_base.facts.scaling_factor
    torch.testing.assert_close(batch.latents, expected, rtol=1e-5, atol=1e-6)


def test_the_noise_offset_is_one_number_a_picture_and_channel(tiny_base):
    plain, offset = (
        Feed(tiny_base, made_up_concept("cat"), FAST.with_options(noise_offset=share)).draw().noise
        for share in (0.0, 0.5)
    )
    shift = offset - plain
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    assert len(shift[..., 0, 0].unique()) == shift.shape[0] * shift.shape[1]
    assert 0.05 < float(shift[..., 0, 0].std()) < 2.0


@pytest.mark.parametrize("masked_loss", [True, False])
def test_the_loss_is_weighted_by_the_mask_or_by_what_is_picture(tiny_base, masked_loss):
    pixels = Image.fromarray(np.full((16, 32, 3), 200, dtype=np.uint8))
    mask = Image.new("L", (32, 16), 0)
    mask.paste(255, (0, 0, 16, 16))
    data = concept_data([(pixels, "<TOK>", mask), (pixels, "<TOK>", None)], name="cat", class_word="cat")
    feed = Feed(tiny_base, data, TrainingConfig(masked_loss=masked_loss, crop_probability=0.0, views_per_picture=1))
    zeros = torch.zeros(2, *feed.moments.mean.shape[1:])
    batch = feed._batch([0, 1], ["<TOK>", "<TOK>"], zeros, zeros, torch.zeros(2, dtype=torch.long))
    rows = slice(2, 6)  # of 8: the padded canvas shows the picture in its middle half
    valid = torch.zeros(8, 8)
    valid[rows] = 1
    inside = valid.clone()
    inside[:, 4:] = 0
    assert torch.equal(batch.weight[0, 0], inside if masked_loss else valid)
    assert torch.equal(batch.weight[1, 0], valid)
    assert batch.has_mask.tolist() == [True, False]


def test_a_picture_that_counts_three_times_is_drawn_three_times_as_often(tiny_base):
    data = made_up_concept("cat")
    often = replace(data, pictures=(replace(data.pictures[0], repeats=3), *data.pictures[1:]))
    feed = Feed(tiny_base, often, TrainingConfig())
    assert Counter(feed._next_picture() for _ in range(12)) == {0: 6, 1: 2, 2: 2, 3: 2}


def test_captions_that_are_equal_within_a_batch_are_encoded_once(tiny_base):
    data = made_up_concept("cat")
    alike = replace(data, pictures=tuple(replace(picture, caption="a photo of <TOK>") for picture in data.pictures))
    rows = []
    hook = tiny_base.text_encoder.register_forward_hook(lambda _module, _inputs, out: rows.append(len(out[0])))
    layers = tiny_base.facts.num_cross_attention_layers
    try:
        for concept, different in ((alike, 1), (data, 4)):
            trainer = Trainer(tiny_base)
            trainer.admit(SlotSpec(key="cat", data=concept, config=FAST.with_options(batch_size=4, templates=False)))
            rows.clear()
            trainer.step()
            assert rows == [different * layers]
    finally:
        hook.remove()
