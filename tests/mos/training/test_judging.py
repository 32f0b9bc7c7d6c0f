import numpy as np
import pytest

from mos.errors import BadInputError
from mos.sampling import SamplingConfig
from mos.training import TrainingConfig, TrainingError
from mos.training.grids import scale_grid
from mos.training.judging import EmbeddingShare, embedding_share, train_seeds
from tests.mos.artifacts import random_edlora
from tests.mos.training.concepts import FAST, made_up_concept


def test_the_share_is_the_words_part_of_the_gain():
    assert EmbeddingShare(plain=2.0, embedding=1.5, full=1.0).share == pytest.approx(0.5)
    assert EmbeddingShare(plain=2.0, embedding=1.5, full=1.0).warning == ""
    assert "carries 10% of the identity" in EmbeddingShare(plain=2.0, embedding=1.9, full=1.0).warning
    assert "not learnt" in EmbeddingShare(plain=1.0, embedding=1.0, full=1.1).warning


def test_several_seeds_are_trained_together_and_the_best_words_come_first(tiny_base):
    data, reports = made_up_concept("cat"), []
    results = train_seeds(tiny_base, data, FAST.with_options(steps=6, seed=4), 3, on_step=reports.append)
    assert sorted(result.seed for result in results) == [4, 5, 6]
    losses = [result.share.embedding for result in results]
    assert losses == sorted(losses)
    assert len(reports) == 18
    again = embedding_share(tiny_base, data, results[0].edlora)
    assert again == results[0].share
    assert results[0].share.full < results[0].share.plain


def test_seeds_out_of_range_and_a_hopeless_run_are_refused(tiny_base):
    with pytest.raises(BadInputError, match="expected 1 to 16"):
        train_seeds(tiny_base, made_up_concept("cat"), FAST, 0)
    wild = TrainingConfig(steps=40, lr_embedding=1.0, lr_unet=1.0, lr_text_encoder=1.0, embedding_norm_stop=1e30,
                          initializer_sigma=1e30)  # fmt: skip
    with pytest.raises(TrainingError, match="none of 1 seeds"):
        train_seeds(tiny_base, made_up_concept("cat"), wild, 1)


def test_the_grid_has_a_row_a_scale_and_rows_differ(tiny_base):
    edlora = random_edlora(tiny_base)
    grid = scale_grid(
        tiny_base, edlora, prompts=("a photo of <TOK>",), seeds=(0, 1), config=SamplingConfig(num_inference_steps=2)
    )
    assert grid.size == (2 * 38 + 6, 3 * 52 + 6)
    pixels = np.asarray(grid).astype(int)
    rows = [pixels[20 + 52 * row : 52 + 52 * row, 6:38] for row in range(3)]
    assert np.abs(rows[0] - rows[1]).max() > 0
    assert np.abs(rows[1] - rows[2]).max() > 0
