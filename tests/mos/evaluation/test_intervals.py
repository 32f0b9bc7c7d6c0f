"""Bootstrap intervals against known answers."""

import numpy as np
import pytest

from mos.errors import BadInputError
from mos.evaluation.intervals import bootstrap_mean, paired_difference


def test_equal_values_have_an_interval_of_no_width():
    found = bootstrap_mean([0.25] * 9)
    assert (found.mean, found.low, found.high, found.count) == (0.25, 0.25, 0.25, 9)


def test_the_interval_of_many_normal_values_is_near_the_closed_form():
    values = np.random.default_rng(1).normal(2.0, 3.0, size=900)
    found = bootstrap_mean(values, num_resamples=4000)
    half_width = 1.96 * values.std() / 30
    assert found.low == pytest.approx(values.mean() - half_width, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half_width, abs=0.03)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        found = bootstrap_mean(generator.normal(0.0, 1.0, size=60), num_resamples=400, seed=trial)
        covered += found.low <= 0.0 <= found.high
    assert 180 <= covered <= 199


def test_pairing_removes_what_the_pairs_share():
    generator = np.random.default_rng(3)
    shared = generator.normal(0.0, 10.0, size=100)
    noise = generator.normal(0.0, 0.1, size=100)
    found = paired_difference(shared + 0.5 + noise, shared)
    assert found.above_zero
    assert found.high - found.low < 0.1


def test_whole_groups_are_drawn_so_alike_values_do_not_narrow_the_interval():
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 50)
    groups = np.repeat(["a", "b", "c", "d"], 50).tolist()
    alone = bootstrap_mean(values)
    grouped = bootstrap_mean(values, groups=groups)
    assert alone.mean == grouped.mean == 0.5
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_one_group_alone_has_the_interval_of_its_values_not_one_of_no_width():
    values = np.random.default_rng(6).random(40)
    assert bootstrap_mean(values, groups=["a"] * 40) == bootstrap_mean(values)


def test_same_seed_same_interval_and_other_seed_other_interval():
    values = np.random.default_rng(4).random(40)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(BadInputError, match="finite"):
        bootstrap_mean(values)


def test_wrong_labels_levels_and_pairs_are_refused():
    with pytest.raises(BadInputError, match="2 values but 1"):
        bootstrap_mean([1.0, 2.0], groups=["a"])
    with pytest.raises(BadInputError, match="level"):
        bootstrap_mean([1.0], level=95)
    with pytest.raises(BadInputError, match="paired"):
        paired_difference([1.0, 2.0], [1.0])
