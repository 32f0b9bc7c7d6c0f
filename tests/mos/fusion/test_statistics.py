"""Statistics: streamed, additive, refused when they cannot be true."""

import numpy as np
import pytest
import torch
from torch import nn

from mos.fusion.capture import fixed_threads, recording
from mos.fusion.errors import FusionError
from mos.fusion.problem import LinearSolution, factored_energy, residual_energy
from mos.fusion.statistics import GramAccumulator, SiteStatistics, StageStatistics


def test_a_streamed_gram_equals_the_gram_of_all_rows() -> None:
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    for precise, tolerance in ((True, 1e-12), (False, 1e-4)):
        accumulator = GramAccumulator(precise=precise)
        for part in rows.split(8):
            accumulator.add(part.view(1, len(part), 7))
        found = accumulator.statistics()
        assert found.num_rows == 50
        np.testing.assert_allclose(found.gram, (rows.double().T @ rows.double()).numpy(), atol=tolerance)


def test_statistics_add_and_a_recording_can_be_taken_out_again() -> None:
    first, second = (SiteStatistics(gram=np.eye(3) * value, num_rows=int(value)) for value in (2.0, 5.0))
    both = first + second
    assert both.num_rows == 7
    back = both - second
    np.testing.assert_array_equal(back.gram, first.gram)
    assert back.num_rows == first.num_rows


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not finite"), (-1.0, "no valid Gram")])
def test_impossible_statistics_are_refused_by_concept_and_site(value: float, message: str) -> None:
    gram = np.eye(3)
    gram[1, 1] = value
    statistics = StageStatistics(
        concept="alice/cat@1", sites={"unet/site": SiteStatistics(gram=gram, num_rows=4)}, held_out={}
    )
    with pytest.raises(FusionError, match=rf"alice/cat@1.*{message}|alice/cat@1.*unet/site.*{message}"):
        statistics.check()


def test_hooks_are_gone_after_an_exception() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    accumulators = {"0": GramAccumulator(precise=True), "1": GramAccumulator(precise=True)}
    with pytest.raises(RuntimeError, match="shapes"), recording(module, {"0": ("0",), "1": ("1",)}, accumulators):
        module(torch.ones(2, 4, 5))
    assert not any(part._forward_pre_hooks for part in module)
    assert accumulators["0"].statistics().num_rows == 8


def test_only_the_first_tokens_are_recorded() -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    accumulator = GramAccumulator(precise=True)
    with recording(module, {"0": ("0",)}, {"0": accumulator}, tokens=2), torch.no_grad():
        module(torch.ones(5, 4, 3))
    assert accumulator.statistics().num_rows == 10


def test_a_site_that_never_runs_is_an_error() -> None:
    with pytest.raises(FusionError, match="no inputs were recorded"):
        GramAccumulator(precise=True).statistics()


def test_errors_are_evaluated_without_cancellation() -> None:
    generator = np.random.default_rng(0)
    up, down, rows = generator.normal(size=(6, 2)), generator.normal(size=(2, 5)), generator.normal(size=(9, 5))
    basis, triangle = np.linalg.qr(up)
    close = LinearSolution(up=basis, down=triangle @ down * (1 + 1e-9))
    error, own = residual_energy(close, up, down, rows.T @ rows)
    expected = float((((close.up @ close.down - up @ down) @ rows.T) ** 2).sum())
    assert error == pytest.approx(expected, rel=1e-4)
    assert 0 < error < 1e-17 * own * 10
    assert factored_energy(np.zeros((6, 0)), np.zeros((0, 5)), rows.T @ rows) == 0.0


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with fixed_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_only_some_of_a_batch_are_recorded() -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    first, second = GramAccumulator(precise=True), GramAccumulator(precise=True)
    inputs = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    with (
        recording(module, {"0": ("0",)}, {"0": first}, batch=slice(0, 2)),
        recording(module, {"0": ("0",)}, {"0": second}, batch=slice(2, 5)),
        torch.no_grad(),
    ):
        module(inputs)
    assert (first.statistics().num_rows, second.statistics().num_rows) == (8, 12)
    rows = inputs[2:].reshape(-1, 3).double()
    np.testing.assert_allclose(second.statistics().gram, (rows.T @ rows).numpy(), atol=1e-12)
