"""Summaries and paired comparisons of scored pictures."""

import pytest

from mos.errors import BadInputError
from mos.evaluation.results import Difference, PictureScore, compare, metric_named, summarise


def row(method: str, seed: int, *, concept: str = "alice/cat@1", **scores: float) -> PictureScore:
    return PictureScore(method=method, concept=concept, prompt="a <alice-cat>", seed=seed, scores=scores)


def test_cells_hold_the_mean_of_every_score_a_method_has():
    rows = [row("single", 0, drift=0.5), row("single", 1, drift=1.0), row("sum", 0, probe_class=1.0)]
    single, summed = summarise(rows)
    assert single.method == "single"
    assert single.count == 2
    assert single.intervals["drift"].mean == 0.75
    assert list(summed.intervals) == ["probe_class"]


def test_values_that_are_not_finite_are_left_out():
    (cell,) = summarise([row("single", 0, drift=float("nan")), row("single", 1, drift=1.0)])
    assert cell.intervals["drift"].count == 1


def test_methods_are_compared_on_the_pictures_both_drew():
    rows = [row("gradient", seed, probe_class=1.0) for seed in range(30)]
    rows += [row("average", seed, probe_class=float(seed % 2)) for seed in range(10, 40)]
    found = compare(rows, "gradient", "average", "probe_class")
    assert found.interval.count == 20
    assert found.interval.mean == 0.5
    assert found.better is True


def test_lower_is_better_where_the_metric_says_so():
    rows = [row("a", seed, drift=0.1) for seed in range(9)] + [row("b", seed, drift=0.3) for seed in range(9)]
    assert compare(rows, "a", "b", "drift").better is True
    assert compare(rows, "b", "a", "drift").better is False
    same = compare(rows, "a", "a", "drift")
    assert isinstance(same, Difference)
    assert same.better is None


def test_a_picture_scored_twice_is_refused():
    with pytest.raises(BadInputError, match="scored twice"):
        summarise([row("single", 0, drift=0.5), row("single", 0, drift=0.5)])


def test_generic_prompts_of_several_models_of_a_method_are_averaged():
    rows = [
        PictureScore(method="single", concept="", model=model, prompt="a dog", seed=0, scores={"drift": value})
        for model, value in (("a/b@1", 0.1), ("c/d@1", 0.3))
    ]
    (cell,) = summarise(rows)
    assert cell.intervals["drift"].mean == pytest.approx(0.2)
    assert cell.intervals["drift"].count == 1
    with pytest.raises(BadInputError, match="scored twice"):
        summarise([*rows, rows[0]])


def test_nothing_shared_and_unknown_metrics_are_refused():
    rows = [row("a", 0, drift=0.1), row("b", 1, drift=0.1)]
    with pytest.raises(BadInputError, match="share no prompt"):
        compare(rows, "a", "b", "drift")
    with pytest.raises(BadInputError, match="expected one of"):
        metric_named("beauty")
