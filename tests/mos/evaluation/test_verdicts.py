"""The verdicts against scores whose answer is known."""

import dataclasses

import pytest

from mos.evaluation.results import PictureScore
from mos.evaluation.verdicts import judge, readiness

THIRD = "Gradient fusion loses at most a third of what averaging loses."


def rows(metric: str = "probe_identity", **levels: float) -> list[PictureScore]:
    """Forty pairs a method, around the given level; the wobble is shared, as prompts share their difficulty."""
    return [
        PictureScore(
            method=method.replace("_", " ").replace("floor ", "floor: "),
            concept=f"a/c{index % 4}@1",
            prompt=f"prompt {index}",
            seed=index,
            scores={metric: level + 0.02 * (index % 5) + 0.01 * ((index * len(method)) % 3)},
        )
        for method, level in levels.items()
        for index in range(40)
    ]


def answers(found) -> dict[str, bool | None]:
    return {verdict.statement: verdict.holds for verdict in found}


def test_a_clear_win_holds_and_a_clear_loss_does_not():
    found = answers(judge(rows(single=0.9, average=0.4, sum=0.8, gradient=0.7)))
    assert found["Gradient fusion keeps more of the identities than averaging the weights."] is True
    assert found["Gradient fusion keeps more of the identities than adding the weights up."] is False


@pytest.mark.parametrize(("gradient", "holds"), [(0.85, True), (0.6, False)])
def test_losing_at_most_a_third_is_judged_against_what_averaging_loses(gradient, holds):
    assert answers(judge(rows(single=0.9, average=0.4, gradient=gradient)))[THIRD] is holds


def test_where_averaging_loses_nothing_there_is_nothing_to_take_a_third_of():
    (verdict,) = [v for v in judge(rows(single=0.5, average=0.6, gradient=0.5)) if v.statement == THIRD]
    assert verdict.holds is None
    assert "nothing to compare with" in verdict.evidence


def test_equal_methods_cannot_be_told_apart():
    same = rows(average=0.5)
    twin = [
        PictureScore(method="gradient", concept=r.concept, prompt=r.prompt, seed=r.seed, scores=r.scores) for r in same
    ]
    (verdict,) = judge(same + twin)
    assert verdict.holds is None
    assert "+0.000 [+0.000, +0.000] over 40 pairs" in verdict.evidence


def test_without_a_probe_image_alignment_decides():
    (verdict,) = judge(rows("image_alignment_pairwise", average=0.5, gradient=0.8))
    assert verdict.holds is True
    assert verdict.evidence.startswith("image-alignment (pairwise)")


def test_without_any_measure_of_identity_nothing_is_judged():
    assert judge(rows("text_alignment", single=0.9, average=0.4, gradient=0.7, floor_untrained_base=0.1)) == []


def test_methods_that_share_no_picture_are_not_compared():
    apart = [dataclasses.replace(row, prompt="another") for row in rows(gradient=0.7)]
    assert judge(rows(single=0.9, average=0.4) + apart) == []


def test_the_base_untrained_is_the_floor_of_a_concept_alone():
    (verdict,) = judge(rows(single=0.5, floor_untrained_base=0.2))
    assert verdict.holds is True


def test_whole_concepts_may_be_what_is_drawn_again():
    wide = judge(rows(average=0.5, gradient=0.6), by_concept=True)
    assert wide[0].holds is True
    assert "over 40 pairs" in wide[0].evidence


@pytest.mark.parametrize(("accessory", "backdrop", "holds"), [(1.0, 1.0, True), (0.8, 1.0, False), (1.0, 0.5, False)])
def test_a_base_that_loses_accessories_or_ignores_backdrops_may_not_tell(accessory, backdrop, holds):
    scores = {"probe_class": 1.0, "probe_accessory": accessory, "probe_backdrop": backdrop}
    ceiling = PictureScore(method="ceiling: autoencoder", concept="a/b@1", prompt="p", seed=0, scores=scores)
    floor = dataclasses.replace(ceiling, method="floor: untrained base")
    found = readiness([ceiling, floor])
    assert found.holds is holds
    assert judge([ceiling, floor])[0] == found
    assert readiness([ceiling]) is None
    assert readiness([floor, dataclasses.replace(ceiling, scores={"probe_class": 1.0})]) is None
