import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mos.sampling.region import (
    MAX_REGIONS,
    Region,
    RegionError,
    blend_weights,
    box_from_numbers,
    check_regions,
    coverage,
)


def box_region(x0: float, y0: float, x1: float, y1: float, **options: float) -> Region:
    return Region(prompt="a mug", box=(x0, y0, x1, y1), **options)


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 64)] * 4), st.sampled_from([(16, 16), (8, 4), (64, 48)]))
def test_box_takes_exactly_the_cells_that_lie_wholly_inside(edges, size):
    x0, x1 = sorted(edges[:2])
    y0, y1 = sorted(edges[2:])
    height, width = size
    if (x1 - x0) * width < 64 or (y1 - y0) * height < 64:
        return
    got = coverage(box_region(x0 / 64, y0 / 64, x1 / 64, y1 / 64), size)
    wanted = torch.zeros(size)
    for y in range(height):
        for x in range(width):
            inside_x = x * 64 >= x0 * width and (x + 1) * 64 <= x1 * width
            inside_y = y * 64 >= y0 * height and (y + 1) * 64 <= y1 * height
            wanted[y, x] = float(inside_x and inside_y)
    if wanted.sum() > 0:
        assert torch.equal(got, wanted)
    else:
        assert got.sum() >= 1  # as long as a cell: the nearest one is kept


def test_an_edge_that_float_rounding_pushes_past_a_cell_still_counts_as_met():
    assert 0.14 * 50 > 7
    assert coverage(box_region(0.14, 0, 0.8, 1), (1, 50))[0].nonzero().flatten().tolist() == list(range(7, 40))


def test_middle_third_keeps_cells_on_a_map_four_cells_wide():
    thirds = [box_region(a / 3, 0, (a + 1) / 3, 1) for a in range(3)]
    columns = [coverage(third, (4, 4))[0].tolist() for third in thirds]
    assert columns == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_mask_drawn_from_a_box_covers_the_same_cells_as_the_box():
    mask = torch.zeros(64, 64)
    mask[5:50, 11:40] = 1
    for size in ((16, 16), (8, 8), (4, 4)):
        box = coverage(box_region(11 / 64, 5 / 64, 40 / 64, 50 / 64), size)
        assert torch.equal(coverage(Region(prompt="a mug", mask=mask), size), box)


def test_grey_mask_is_averaged_over_each_cell():
    mask = torch.arange(16.0).reshape(4, 4) / 16
    cells = coverage(Region(prompt="a mug", mask=mask), (2, 2))
    assert torch.allclose(cells, torch.tensor([[2.5, 4.5], [10.5, 12.5]]) / 16)


def test_outside_all_regions_the_global_prompt_keeps_everything():
    weights = blend_weights([box_region(0, 0, 0.5, 1)], (4, 4)).reshape(2, 4, 4)
    assert torch.equal(weights[0], torch.tensor([0.0, 0, 1, 1]).expand(4, 4))
    assert torch.equal(weights[1], torch.tensor([1.0, 1, 0, 0]).expand(4, 4))


def test_overlaps_are_averaged_and_weights_shift_the_average():
    left, right = box_region(0, 0, 0.75, 1), box_region(0.25, 0, 1, 1)
    row = blend_weights([left, right], (1, 4))
    assert torch.allclose(row, torch.tensor([[0, 0, 0, 0], [1, 0.5, 0.5, 0], [0, 0.5, 0.5, 1]]))
    row = blend_weights([left, box_region(0.25, 0, 1, 1, weight=3.0)], (1, 4))
    assert torch.allclose(row[:, 1], torch.tensor([0, 0.25, 0.75]))


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 4, st.floats(0.1, 5), st.floats(0, 0.5)), min_size=1, max_size=6),
    st.sampled_from([(16, 16), (4, 4), (8, 12)]),
)
def test_shares_of_every_cell_sum_to_one(boxes, size):
    regions = []
    for a, b, c, d, weight, soft in boxes:
        (x0, x1), (y0, y1) = sorted((a, c)), sorted((b, d))
        if x0 < x1 and y0 < y1:
            regions.append(box_region(x0, y0, x1, y1, weight=weight, soft_edge=soft))
    weights = blend_weights(regions, size)
    assert weights.shape == (1 + len(regions), math.prod(size))
    assert weights.min() >= 0
    assert torch.allclose(weights.sum(0), torch.ones(math.prod(size)), atol=1e-5)


def test_soft_edge_fades_towards_the_middle_of_the_picture_only():
    row = coverage(box_region(0, 0, 0.5, 1, soft_edge=0.25), (1, 16))[0]
    assert torch.equal(row[:4], torch.ones(4))
    assert torch.allclose(row[4:8], torch.tensor([3.5, 2.5, 1.5, 0.5]) / 4)
    assert row[8:].sum() == 0


def test_soft_edge_of_a_mask_stays_inside_the_mask():
    mask = torch.zeros(32, 32)
    mask[8:24, 8:24] = 1
    soft = coverage(Region(prompt="a mug", mask=mask, soft_edge=0.1), (32, 32))
    assert soft[mask == 0].max() == 0
    assert soft[16, 16] == 1
    assert 0 < soft[9, 16] < 1


def test_pixels_and_fractions_give_the_same_box():
    assert box_from_numbers([0, 16, 32, 64], width=64, height=64) == (0, 0.25, 0.5, 1)
    assert box_from_numbers([0, 0.25, 0.5, 1], width=64, height=64) == (0, 0.25, 0.5, 1)
    assert box_from_numbers([0, 0, 1, 1], width=64, height=64) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ([0, 0, 1.2, 1], "outside the picture"),
        ([-0.1, 0, 0.5, 1], "outside the picture"),
        ([0, 0, 65, 64], "outside the 64x64 picture"),
        ([-3, 0, 60, 64], "outside the picture"),
        ([0.6, 0, 0.4, 1], "reversed"),
        ([0.5, 0, 0.5, 1], "empty"),
        ([0, 0, 1], "3 numbers"),
        ([0, 0, math.nan, 1], "not four finite numbers"),
    ],
)
def test_bad_boxes_get_one_clear_line(numbers, found):
    with pytest.raises(RegionError, match=re.escape(found)) as caught:
        box_from_numbers(numbers, width=64, height=64, prompt="a mug")
    message = str(caught.value)
    assert "\n" not in message
    assert "a mug" in message


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.zeros(8, 8), "empty"),
        (torch.ones(3, 8, 8), "one channel"),
        (torch.full((8, 8), 2.0), "outside 0..1"),
        (torch.full((8, 8), math.nan), "outside 0..1"),
    ],
)
def test_bad_masks_get_one_clear_line(mask, found):
    with pytest.raises(RegionError, match=re.escape(found)):
        Region(prompt="a mug", mask=mask)


def test_region_needs_exactly_one_of_box_and_mask():
    with pytest.raises(RegionError, match="either a box or a mask"):
        Region(prompt="a mug")
    with pytest.raises(RegionError, match="either a box or a mask"):
        Region(prompt="a mug", box=(0, 0, 1, 1), mask=torch.ones(4, 4))


def test_box_smaller_than_a_cell_of_the_coarsest_map_is_refused():
    maps = [(16, 16), (8, 8), (4, 4)]
    check_regions([box_region(0, 0, 0.25, 0.25)], maps)
    with pytest.raises(RegionError, match=r"region 2 .*too small.*coarsest 4x4"):
        check_regions([box_region(0, 0, 0.5, 1), box_region(0.1, 0, 0.3, 1)], maps)


def test_more_regions_than_the_limit_are_refused():
    regions = [box_region(0, 0, 1, 1)] * (MAX_REGIONS + 1)
    with pytest.raises(RegionError, match=f"{MAX_REGIONS + 1} regions, at most {MAX_REGIONS}"):
        check_regions(regions, [(4, 4)])
