"""Oracles of the fusion solvers: closed forms, raw activations, the paper's solver written plainly."""

import numpy as np
import pytest
import torch

from mos.fusion.config import SOLVERS
from mos.fusion.errors import FusionError
from mos.fusion.problem import LinearProblem, SiteProblem
from mos.fusion.reference import solve_reference
from mos.fusion.solver import plan_bins, solve_sites
from tests.mos.fusion.problems import NAMES, OUT, RANK, RawProblem, raw_problem


def few_rows(rows: int) -> RawProblem:
    """`few-rows` with so few rows that all of them together span less than the width."""
    raw = raw_problem("few-rows")
    return RawProblem(inputs=[x[:rows] for x in raw.inputs], ups=raw.ups, downs=raw.downs)


def update_of(problem: SiteProblem, **options: object) -> np.ndarray:
    solution = solve_sites([problem], **options)[0].linears["linear"]
    return solution.up @ solution.down


@pytest.mark.parametrize("name", NAMES)
def test_exact_is_the_least_norm_solution_of_the_raw_least_squares_problem(name: str) -> None:
    raw = raw_problem(name)
    targets = torch.cat([x @ delta.T for x, delta in zip(raw.inputs, raw.deltas, strict=True)])
    expected = np.linalg.lstsq(torch.cat(raw.inputs).numpy(), targets.numpy(), rcond=1e-10)[0].T
    update = update_of(raw.site(), solver="exact")
    np.testing.assert_allclose(update, expected, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_preconditioned_lbfgs_equals_the_exact_solution(name: str, ridge: float) -> None:
    problem = raw_problem(name).site(ridge=ridge)
    exact = update_of(problem, solver="exact")
    update = update_of(problem, solver="lbfgs-preconditioned")
    assert np.linalg.norm(update - exact) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_lbfgs_on_the_gram_form_reaches_the_reference_loss(name: str, steps: int) -> None:
    raw = raw_problem(name)
    reference = raw.loss(solve_reference(raw.inputs, raw.deltas, steps=steps))
    assert raw.loss(update_of(raw.site(steps=steps))) <= 1.05 * reference
    assert reference < 0.9 * raw.loss(torch.zeros(OUT, raw.inputs[0].shape[1], dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("solver", ["lbfgs", "lbfgs-preconditioned", "exact"])
def test_every_solver_meets_the_concepts_better_than_their_average_and_sum(name: str, solver: str) -> None:
    raw = raw_problem(name)
    total = torch.stack(raw.deltas).sum(dim=0)
    loss = raw.loss(update_of(raw.site(ridge=1e-4), solver=solver))
    assert loss < (0.96 if name == "conflict" else 0.6) * raw.loss(total / len(raw.deltas))
    assert loss < 0.9 * raw.loss(total)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_of_lbfgs_are_the_reference_path(name: str) -> None:
    raw = raw_problem(name)
    for steps in (1, 2, 5):
        reference = solve_reference(raw.inputs, raw.deltas, steps=steps).numpy()
        update = update_of(raw.site(steps=steps))
        assert np.linalg.norm(update - reference) < 1e-6 * np.linalg.norm(reference)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_never_leaves_the_span_of_the_concepts(name: str) -> None:
    raw = raw_problem(name)
    update = solve_reference(raw.inputs, raw.deltas, steps=8)
    basis = torch.linalg.qr(torch.cat(raw.ups, dim=1)).Q
    outside = update - basis @ (basis.T @ update)
    assert float(outside.norm()) < 1e-9 * float(update.norm())


@pytest.mark.parametrize("solver", ["lbfgs", "exact"])
def test_the_reduced_form_equals_the_full_form(solver: str) -> None:
    raw = raw_problem("many-rows")
    reduced = raw.site(steps=8)
    wish = sum(delta.numpy() @ (x.T @ x).numpy() for x, delta in zip(raw.inputs, raw.deltas, strict=True))
    full = SiteProblem(
        site="site",
        matrix=reduced.matrix,
        num_rows=reduced.num_rows,
        linears={"linear": LinearProblem(ups=(np.eye(OUT),), projected=(wish,))},
        steps=8,
    )
    first, second = update_of(reduced, solver=solver), update_of(full, solver=solver)
    assert np.linalg.norm(first - second) < 1e-6 * np.linalg.norm(first)


def test_the_dual_form_over_the_rows_equals_the_solution_from_the_gram_matrix() -> None:
    raw = few_rows(rows=10)
    rows = torch.cat(raw.inputs)
    targets = torch.cat([x @ delta.T for x, delta in zip(raw.inputs, raw.deltas, strict=True)])
    dual = torch.linalg.solve(rows @ rows.T, targets).T @ rows
    update = update_of(raw.site(), solver="exact")
    assert np.linalg.norm(update - dual.numpy()) < 1e-6 * float(dual.norm())


def test_the_range_of_the_matrix_and_cholesky_agree_where_both_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = raw_problem("many-rows").site(ridge=1e-4, steps=8)
    for name in SOLVERS:
        primal = update_of(problem, solver=name)
        with monkeypatch.context() as patch:
            patch.setattr("mos.fusion.solver.LARGEST_CONDITION", 0.0)
            in_range = update_of(problem, solver=name)
        assert not np.array_equal(primal, in_range)
        assert np.linalg.norm(primal - in_range) < 1e-7 * np.linalg.norm(primal)


def test_lbfgs_does_not_run_away_along_inputs_that_never_occur() -> None:
    raw = few_rows(rows=10)
    rows = torch.cat(raw.inputs)
    basis = torch.linalg.qr(rows.T).Q.numpy()
    for steps in (50, 500):
        update = update_of(raw.site(steps=steps))
        assert np.linalg.norm(update - update @ basis @ basis.T) < 1e-6 * np.linalg.norm(update)


def test_repeated_rows_do_not_disturb_the_exact_solution() -> None:
    few = few_rows(rows=10)
    repeated = type(few)(inputs=[x.repeat(9, 1) for x in few.inputs], ups=few.ups, downs=few.downs)
    first, second = update_of(few.site(), solver="exact"), update_of(repeated.site(), solver="exact")
    assert np.linalg.norm(first - second) < 1e-6 * np.linalg.norm(first)


@pytest.mark.parametrize("solver", ["lbfgs", "lbfgs-preconditioned", "exact"])
def test_one_concept_alone_is_reproduced_on_its_inputs(solver: str) -> None:
    raw = raw_problem("many-rows")
    alone = type(raw)(inputs=raw.inputs[:1], ups=raw.ups[:1], downs=raw.downs[:1])
    update = update_of(alone.site(), solver=solver)
    assert np.linalg.norm(update - alone.deltas[0].numpy()) < 1e-4 * float(alone.deltas[0].norm())


@pytest.mark.parametrize("solver", ["lbfgs", "lbfgs-preconditioned", "exact"])
def test_the_order_of_concepts_does_not_change_the_update(solver: str) -> None:
    raw = raw_problem("conflict")
    turned = type(raw)(inputs=raw.inputs[::-1], ups=raw.ups[::-1], downs=raw.downs[::-1])
    first, second = (update_of(item.site(steps=8, ridge=1e-4), solver=solver) for item in (raw, turned))
    assert np.linalg.norm(first - second) < 1e-6 * np.linalg.norm(first)


def test_a_batch_solves_each_problem_as_if_it_were_alone() -> None:
    problems = []
    for seed in range(5):
        for name in NAMES:
            site = raw_problem(name, seed).site(steps=50)
            problems.append(
                SiteProblem(
                    site=f"{name}-{seed}",
                    matrix=site.matrix,
                    num_rows=site.num_rows,
                    linears=site.linears,
                    steps=site.steps,
                )
            )
    together = solve_sites(problems)
    assert [solution.site for solution in together] == [problem.site for problem in problems]
    for problem, solution in zip(problems, together, strict=True):
        alone = solve_sites([problem])[0].linears["linear"]
        np.testing.assert_array_equal(solution.linears["linear"].down, alone.down)


def test_linears_of_one_site_with_different_ranks_are_solved() -> None:
    raw = raw_problem("many-rows")
    site = raw.site()
    whole = site.linears["linear"]
    part = LinearProblem(
        ups=(whole.ups[0], whole.ups[1][:, :1], whole.ups[2][:, :0]),
        projected=(whole.projected[0], whole.projected[1][:1], whole.projected[2][:0]),
    )
    mixed = SiteProblem(
        site="site", matrix=site.matrix, num_rows=site.num_rows, linears={"a": whole, "b": part}, steps=20
    )
    solution = solve_sites([mixed])[0].linears
    assert solution["a"].down.shape[0] == 3 * RANK
    assert solution["b"].down.shape[0] == RANK + 1


def test_read_only_arrays_are_solved() -> None:
    site = raw_problem("many-rows").site(steps=5)
    for array in (site.matrix, *site.linears["linear"].ups, *site.linears["linear"].projected):
        array.setflags(write=False)
    assert np.isfinite(update_of(site)).all()


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    site = raw_problem("many-rows").site()
    site.linears["linear"].projected[0][0, 0] = np.nan
    with pytest.raises(FusionError, match="linear: a concept's weights"):
        solve_sites([site])


def test_bins_hold_every_site_once_and_are_balanced() -> None:
    costs = {f"site-{index}": float(index % 5 + 1) ** 3 for index in range(40)}
    bins = plan_bins(costs, 4)
    assert sorted(name for names in bins for name in names) == sorted(costs)
    loads = [sum(costs[name] for name in names) for names in bins]
    assert max(loads) - min(loads) <= max(costs.values())
    assert plan_bins(dict(reversed(costs.items())), 4) == bins
