"""The stated problems of the fusion benchmark."""

import torch

from benchmarks.fusion_problems import SD15, Shape, case_of


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
