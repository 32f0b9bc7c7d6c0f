import numpy as np
import pytest

from mos.sampling import SamplingConfig
from mos.training.grids import scale_grid
from mos.training.judging import EmbeddingShare
from tests.mos.artifacts import random_edlora


def test_the_share_is_the_words_part_of_the_gain():
    assert EmbeddingShare(plain=2.0, embedding=1.5, full=1.0).share == pytest.approx(0.5)
    assert EmbeddingShare(plain=2.0, embedding=1.5, full=1.0).warning == ""
    assert "carries 10% of the identity" in EmbeddingShare(plain=2.0, embedding=1.9, full=1.0).warning
    assert "not learnt" in EmbeddingShare(plain=1.0, embedding=1.0, full=1.1).warning


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
