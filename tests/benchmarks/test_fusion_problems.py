"""The stated problems of the fusion benchmark, and what is said of the whole model."""

import pytest
import torch

from benchmarks.fusion_problems import SD15, Shape, case_of
from benchmarks.fusion_shapes import mean_rows
from benchmarks.results_file import Row


def test_sites_of_one_size_share_what_the_reference_is_asked() -> None:
    """The reference solves the first linear of a size once, whatever the number of linears at a site."""
    groups: dict[tuple[int, int, int], list[Shape]] = {}
    for shape in SD15:
        groups.setdefault((shape.width, shape.out, shape.rows), []).append(shape)
    shared = [group for group in groups.values() if len(group) > 1]
    assert len(shared) == 4
    for group in shared:
        first, *others = [case_of(shape, rows=8) for shape in group]
        for case in others:
            assert len(case.ups) != len(first.ups)
            for left, right in (
                (case.fitted, first.fitted),
                (case.ups[0], first.ups[0]),
                (case.downs[0], first.downs[0]),
            ):
                assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_whole_models_errors_count_every_linear_once() -> None:
    def figure(shape: Shape, solver: str) -> float:
        return 3.0 if solver == "lbfgs" and shape.stage == "spatial qkv" else 1.0

    rows = [
        Row(name=f"{shape.name}: {solver}, {name}", value=figure(shape, solver), unit="")
        for shape in SD15
        for solver in ("reference", "lbfgs")
        for name in ("fit", "held out", "drift")
    ]
    linears = sum(shape.sites * shape.linears for shape in SD15)
    packed = 3 * 16  # queries, keys and values of sixteen self-attentions
    assert linears == 176
    assert [row.value for row in mean_rows(rows)] == [pytest.approx((linears + 2 * packed) / linears)] * 3
    assert [row.holds for row in mean_rows(rows)] == [None, False, False]
