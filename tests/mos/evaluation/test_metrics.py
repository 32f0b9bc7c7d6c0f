"""The metrics against cases computed by hand."""

import math

import numpy as np
import pytest

from mos.errors import BadInputError
from mos.evaluation import metrics

ROOT_HALF = math.sqrt(0.5)


def test_text_alignment_is_two_and_a_half_times_the_clipped_cosine_of_each_pair():
    images = [[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]
    texts = [[1.0, 1.0], [0.0, 0.1], [-5.0, 0.0]]
    assert metrics.text_alignment(images, texts) == pytest.approx([2.5 * ROOT_HALF, 2.5, 0.0])


def test_image_alignment_reports_all_pairs_and_the_first_reference_apart():
    samples = [[1.0, 0.0], [0.0, 4.0]]
    references = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    found = metrics.image_alignment(samples, references)
    assert found.pairwise == pytest.approx([1 / 3, 1 / 3])
    assert found.first_reference == pytest.approx([1.0, 0.0])


def test_a_negative_cosine_is_clipped_before_the_mean():
    found = metrics.image_alignment([[1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]])
    assert found.pairwise == pytest.approx([0.5])


def test_identity_rank_counts_distractors_that_are_at_least_as_alike():
    own = [[1.0, 0.0]]
    nearer, equal, far = [[1.0, 1.0]], [[1.0, 0.0]], [[0.0, 1.0]]
    ranks = metrics.identity_ranks([[1.0, 0.0], [1.0, 1.0]], own, [nearer, equal, far])
    assert ranks.tolist() == [2, 4]


def test_identity_rank_without_distractors_is_refused():
    with pytest.raises(BadInputError, match="distractor"):
        metrics.identity_ranks([[1.0, 0.0]], [[1.0, 0.0]], [])


def test_drift_is_zero_for_the_same_pictures_and_one_for_orthogonal_ones():
    assert metrics.drift([[1.0, 2.0], [1.0, 0.0]], [[2.0, 4.0], [0.0, 3.0]]) == pytest.approx([0.0, 1.0])


def test_diversity_is_the_mean_distance_over_pairs():
    assert metrics.diversity([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]) == pytest.approx(2 / 3)
    assert metrics.diversity([[1.0, 0.0], [2.0, 0.0]]) == pytest.approx(0.0)


@pytest.mark.parametrize("features", [[[0.0, 0.0]], [[math.nan, 1.0]], [], [1.0, 2.0]])
def test_features_without_a_direction_are_refused(features):
    with pytest.raises(BadInputError):
        metrics.normalised(features)


def test_pictures_and_prompts_of_different_number_are_refused():
    with pytest.raises(BadInputError, match="2 pictures but 1 prompts"):
        metrics.text_alignment(np.eye(2), np.eye(2)[:1])
    with pytest.raises(BadInputError, match="2 before, 1 after"):
        metrics.drift(np.eye(2), np.eye(2)[:1])
