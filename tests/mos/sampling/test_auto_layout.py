import itertools

import pytest

from mos.sampling.auto_layout import compact_boxes, layout_from_prompt
from mos.sampling.region import RegionError

A, B, C, D = "<alice-robot>", "<bob-cat>", "<carol-house>", "<dan-mug>"


def boxes(prompt):
    layout = layout_from_prompt(prompt)
    assert layout.prompt == prompt
    return {region.prompt.split()[0]: tuple(round(edge, 3) for edge in region.box) for region in layout.regions}


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        (f"{A} left of {B}", {A: (0, 0, 0.5, 1), B: (0.5, 0, 1, 1)}),
        (f"a {A} to the right of the {B}", {A: (0.5, 0, 1, 1), B: (0, 0, 0.5, 1)}),
        (f"{A} above {B}", {A: (0, 0, 1, 0.5), B: (0, 0.5, 1, 1)}),
        (f"{A} below {B}", {A: (0, 0.5, 1, 1), B: (0, 0, 1, 0.5)}),
        (f"{A} and {B}", {A: (0, 0, 0.5, 1), B: (0.5, 0, 1, 1)}),
        (f"{A}, {B} and {C}", {A: (0, 0, 0.5, 0.5), B: (0.5, 0, 1, 0.5), C: (0.25, 0.5, 0.75, 1)}),
        (f"{A} left of {B}, {C} above {B}", {A: (0, 0.5, 0.5, 1), B: (0.5, 0.5, 1, 1), C: (0.5, 0, 1, 0.5)}),
        (
            f"{A} left of {B}, {C} left of {D}",
            {A: (0, 0, 0.25, 1), B: (0.25, 0, 0.5, 1), C: (0.5, 0, 0.75, 1), D: (0.75, 0, 1, 1)},
        ),
        (f"{A} left of {B}, {C} right of {A}", {A: (0, 0, 0.333, 1), B: (0.333, 0, 0.667, 1), C: (0.667, 0, 1, 1)}),
    ],
)
def test_relations_become_boxes(prompt, wanted):
    assert boxes(prompt) == wanted


@pytest.mark.parametrize("count", range(1, 17))
def test_compact_boxes_share_the_picture_without_overlap(count):
    found = compact_boxes(count)
    assert len(found) == count
    for x0, y0, x1, y1 in found:
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
    for one, other in itertools.combinations(found, 2):
        across = min(one[2], other[2]) - max(one[0], other[0])
        down = min(one[3], other[3]) - max(one[1], other[1])
        assert min(across, down) < 1e-9


def test_setting_after_the_last_word_goes_into_every_region():
    layout = layout_from_prompt(f"{A} left of {B}, on a beach.")
    assert [region.prompt for region in layout.regions] == [f"{A} on a beach", f"{B} on a beach"]


def test_a_word_named_twice_gets_one_region():
    assert list(boxes(f"{A} left of {B}, {B} left of {C}")) == [A, B, C]


@pytest.mark.parametrize("prompt", ["a cat on a beach", f"{A} on a beach", f"{A} and {A}"])
def test_fewer_than_two_words_are_refused(prompt):
    with pytest.raises(RegionError, match="two or more concept words"):
        layout_from_prompt(prompt)


def test_contradicting_relations_are_refused():
    with pytest.raises(RegionError, match="cannot stand as it says"):
        layout_from_prompt(f"{A} left of {B}, {B} left of {A}")
