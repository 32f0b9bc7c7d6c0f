import numpy as np
import pytest
import torch
from PIL import Image

from mos.errors import BadInputError
from mos.training import DataError, TrainingConfig, concept_data
from mos.training.batches import Feed
from mos.training.captions import TEMPLATES, draw_caption, with_words
from mos.training.data import draw_views
from tests.mos.training.concepts import made_up_concept
from tests.mos.training.hostile import quarters


def views_of(size, **options):
    data = concept_data([(quarters(size), "<TOK>", Image.new("L", size, 255))], name="cat", class_word="cat")
    return draw_views(data, TrainingConfig(**options), 32, torch.Generator().manual_seed(0))


def test_a_square_picture_has_one_view_that_is_all_valid():
    (view,) = views_of((64, 64))
    assert view.pixels.shape == (3, 32, 32)
    assert bool((view.valid == 1).all())
    assert -1 <= float(view.pixels.min()) <= float(view.pixels.max()) <= 1


def test_a_padded_view_knows_its_valid_area():
    for view in views_of((96, 48), crop_probability=0.0, views_per_picture=3):
        assert view.valid[:8].sum() == 0
        assert view.valid[24:].sum() == 0
        assert bool((view.valid[8:24] == 1).all())
        assert float(view.mask[:8].sum()) == 0
        assert float(view.pixels[:, :7].abs().max()) < 0.01


def test_a_cropped_view_is_all_picture_and_crops_differ():
    views = views_of((96, 48), crop_probability=1.0, views_per_picture=6)
    assert all(bool((view.valid == 1).all()) for view in views)
    assert len({view.pixels.sum().item() for view in views}) > 2


def test_flipping_doubles_the_views():
    first, second = views_of((64, 64), flip=True)
    assert torch.equal(first.pixels.flip(-1), second.pixels)


def test_captions_are_shuffled_with_the_first_part_kept():
    generator = torch.Generator().manual_seed(0)
    caption = "a photo of <TOK>, at home, in winter, at night"
    drawn = {draw_caption(caption, "pet", shuffle=True, templates=True, generator=generator) for _ in range(40)}
    assert len(drawn) == 6
    assert all(sorted(text.split(", ")) == sorted(caption.split(", ")) for text in drawn)
    assert all(text.startswith("a photo of <TOK>, ") for text in drawn)
    assert draw_caption(caption, "pet", shuffle=False, templates=True, generator=generator) == caption


@pytest.mark.parametrize("kind", ["human", "object", "scene", "pet", "style"])
def test_a_picture_without_caption_gets_a_template_of_its_kind(kind):
    generator = torch.Generator().manual_seed(0)
    drawn = {draw_caption("<TOK>", kind, shuffle=True, templates=True, generator=generator) for _ in range(200)}
    assert drawn == {template.format("<TOK>") for template in TEMPLATES[kind]}
    assert all(text.count("<TOK>") == 1 for text in drawn)
    assert draw_caption("<TOK>", kind, shuffle=True, templates=False, generator=generator) == "<TOK>"


def test_the_token_is_replaced_whatever_its_case():
    assert with_words("<TOK> and <tok>", "<a-cat>") == "<a-cat> and <a-cat>"


def test_the_digest_sees_every_change():
    data = made_up_concept("cat")
    digests = {data.digest(), made_up_concept("dog").digest(), made_up_concept("cat", seed=1).digest()}
    digests.add(made_up_concept("cat", masked=False).digest())
    assert len(digests) == 4
    assert made_up_concept("cat").digest() == data.digest()


def test_data_without_pictures_or_of_unknown_kind_is_refused():
    with pytest.raises(DataError, match="no pictures"):
        concept_data([], name="cat", class_word="cat")
    picture = Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="kind"):
        concept_data([(picture, "<TOK>", None)], name="cat", class_word="cat", kind="beast")


def test_a_picture_drawn_twice_shares_its_caption_but_not_noise_or_timestep(tiny_base):
    config = TrainingConfig(batch_size=6, draws_per_picture=2, views_per_picture=4)
    batch = Feed(tiny_base, made_up_concept("cat", size=(40, 32)), config).draw()
    rows = batch.token_ids["text_encoder"]
    assert torch.equal(rows[0::2], rows[1::2])
    assert len({tuple(row) for row in rows.tolist()}) == 3
    for drawn in (batch.noise, batch.latents):
        assert not torch.equal(drawn[0::2], drawn[1::2])
    assert not torch.equal(batch.timesteps[0::2], batch.timesteps[1::2])
    with pytest.raises(BadInputError, match="draws_per_picture 4, expected a divisor of batch_size 6"):
        config.with_options(draws_per_picture=4)
