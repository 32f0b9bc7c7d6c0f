"""Solves fusion problems: the paper's LBFGS on the Gram form, the same preconditioned, and exactly."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from mos.fusion.config import SolverName
from mos.fusion.errors import FusionError
from mos.fusion.lbfgs import Quadratics, minimise
from mos.fusion.problem import (
    LinearSolution,
    ReducedLinear,
    SiteProblem,
    SiteSolution,
    check_problem,
    reduce_linear,
)
from mos.fusion.statistics import tensor_of

Tensor = torch.Tensor


WORKSPACE_BYTES = 192 * 2**20
"""Bound on the LBFGS history of one batch; larger groups of equal shapes are solved in several batches."""
LARGEST_CONDITION = 1e12
"""Above this condition of A, the Cholesky factor no longer carries the solution in float64."""
RANK_TOLERANCE = 1e-12
"""Eigenvalues of A below this part of the largest are rounding, not data."""
CONVERGENCE_STEPS = 50
"""Far more steps than the preconditioned solver ever needs; it stops by itself."""

Batch = list[tuple[SiteProblem, dict[str, ReducedLinear]]]


def solve_sites(
    problems: Sequence[SiteProblem],
    *,
    solver: SolverName = "lbfgs",
    history: int = 25,
    device: str | torch.device = "cpu",
) -> list[SiteSolution]:
    """Solve problems, those of equal shapes together; results come in the order of the problems.

    Args:
        problems: The sites, of any shapes.
        solver: `lbfgs` is the paper's solver, stopped after `problem.steps` steps; `lbfgs-preconditioned` is LBFGS
            on the whitened form, run to convergence; `exact` is the minimum nearest zero in closed form.
        history: LBFGS history size.
        device: Where to compute, in float64.

    Raises:
        FusionError: If a problem or its solution is not finite; names the site or linear.
    """
    solve = _SOLVERS[solver]
    groups: dict[tuple[int, ...], Batch] = defaultdict(list)
    for problem in problems:
        check_problem(problem)
        reduced = {name: reduce_linear(linear) for name, linear in problem.linears.items()}
        shapes = sorted((item.target.shape[0], name) for name, item in reduced.items())
        for rank in sorted({rank for rank, _ in shapes}):
            part = {name: reduced[name] for other, name in shapes if other == rank}
            groups[problem.matrix.shape[0], rank, len(part), problem.steps].append((problem, part))
    found: dict[str, dict[str, LinearSolution]] = defaultdict(dict)
    for (width, rank, num_linears, _), group in groups.items():
        for batch in _batches(group, width * rank * num_linears * 8 * 2 * (history + history // 2)):
            for (problem, part), rows in zip(batch, solve(batch, history, torch.device(device)), strict=True):
                found[problem.site] |= _solutions(part, rows)
    return [_site_solution(problem, found[problem.site]) for problem in problems]


def plan_bins(costs: Mapping[str, float], num_bins: int) -> list[list[str]]:
    """Pack sites into bins of nearly equal cost, longest first; equal inputs give equal bins.

    Args:
        costs: Cost of each site, such as `site_cost`.
        num_bins: How many bins at most; empty ones are left out.
    """
    bins: list[list[str]] = [[] for _ in range(max(num_bins, 1))]
    loads = [0.0] * len(bins)
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        lightest = loads.index(min(loads))
        bins[lightest].append(name)
        loads[lightest] += costs[name]
    return [names for names in bins if names]


def site_cost(problem: SiteProblem) -> float:
    """Relative cost of a site, the cube of its width."""
    return float(problem.matrix.shape[0]) ** 3


def _batches(group: Batch, bytes_each: int) -> list[Batch]:
    size = max(1, WORKSPACE_BYTES // max(bytes_each, 1))
    return [group[start : start + size] for start in range(0, len(group), size)]


def _solutions(part: dict[str, ReducedLinear], rows: Tensor) -> dict[str, LinearSolution]:
    return {
        name: LinearSolution(up=item.basis.numpy(), down=row.cpu().numpy())
        for (name, item), row in zip(part.items(), rows, strict=True)
    }


def _site_solution(problem: SiteProblem, linears: dict[str, LinearSolution]) -> SiteSolution:
    for name, linear in linears.items():
        if not np.isfinite(linear.down).all():
            raise FusionError(f"{name}: the solution is not finite; use a larger ridge or the solver lbfgs")
    return SiteSolution(site=problem.site, linears={name: linears[name] for name in problem.linears})


def _solve_lbfgs(batch: Batch, history: int, device: torch.device) -> Sequence[Tensor]:
    matrices, targets = _stack(batch, device)
    scales = torch.tensor(
        [[1.0 / (problem.num_rows * len(item.basis)) for item in part.values()] for problem, part in batch],
        dtype=torch.float64,
        device=device,
    )
    problems = Quadratics(matrices=matrices, targets=targets, scales=scales)
    first = _first_steps(batch, scales)
    return list(minimise(problems, first_step=first, steps=batch[0][0].steps, history=history))


def _first_steps(batch: Batch, scales: Tensor) -> Tensor:
    """min(1, 1 / |gradient|_1) of the full form, as torch.optim.LBFGS takes its first step."""
    sums = [[float((item.basis @ item.target).abs().sum()) for item in part.values()] for _, part in batch]
    gradients = 2 * scales * scales.new_tensor(sums)
    return torch.minimum(torch.ones_like(gradients), 1 / gradients.clamp_min(torch.finfo(gradients.dtype).tiny))


def _solve_preconditioned(batch: Batch, history: int, device: torch.device) -> Sequence[Tensor]:
    """LBFGS in coordinates where A is the identity, on the part of the space where A is not zero."""
    results = []
    for problem, part in batch:
        unwhiten = _whitening(tensor_of(problem.matrix).to(device))
        targets = torch.stack([item.target for item in part.values()]).to(device) @ unwhiten
        identity = torch.eye(unwhiten.shape[1], dtype=torch.float64, device=device)
        ones = torch.ones(1, len(part), dtype=torch.float64, device=device)
        whitened = Quadratics(matrices=identity[None], targets=targets[None], scales=ones)
        rows = minimise(whitened, first_step=ones, steps=CONVERGENCE_STEPS, history=history)[0]
        results.append(rows @ unwhiten.T)
    return results


def _solve_exact(batch: Batch, history: int, device: torch.device) -> Sequence[Tensor]:
    """Y = C A^+: by Cholesky where A is well conditioned, else in the range of A."""
    del history
    results = []
    for problem, part in batch:
        matrix = tensor_of(problem.matrix).to(device)
        targets = torch.stack([item.target for item in part.values()]).to(device)
        triangle = _cholesky(matrix)
        if triangle is None:
            unwhiten = _range_whitening(matrix)
            results.append(targets @ unwhiten @ unwhiten.T)
        else:
            rows = targets.reshape(-1, matrix.shape[0])
            results.append(torch.cholesky_solve(rows.T, triangle).T.reshape(targets.shape))
    return results


def _whitening(matrix: Tensor) -> Tensor:
    """W [in, k] with W^T A W = I, such that the minimum nearest zero is Y = Z W^T."""
    triangle = _cholesky(matrix)
    if triangle is None:
        return _range_whitening(matrix)
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    inverse: Tensor = torch.linalg.solve_triangular(triangle, identity, upper=False)
    return inverse.T


def _cholesky(matrix: Tensor) -> Tensor | None:
    """The Cholesky factor, or None where A is too ill-conditioned to be solved through it."""
    triangle: Tensor
    triangle, failed = torch.linalg.cholesky_ex(matrix)
    pivots = triangle.diagonal()
    if int(failed) or float(pivots.max()) ** 2 > LARGEST_CONDITION * float(pivots.min()) ** 2:
        return None
    return triangle


def _range_whitening(matrix: Tensor) -> Tensor:
    """The whitening of the range of A: the dual form, whose unknowns are as many as A's numerical rank.

    Rows repeat across layers and prompts, so the rank is read from the spectrum, never from the number of rows.
    """
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > RANK_TOLERANCE * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    whitening: Tensor = vectors[:, kept] / values[kept].sqrt()
    return whitening


def _stack(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    matrices = torch.stack([tensor_of(problem.matrix) for problem, _ in batch])
    targets = torch.stack([torch.stack([item.target for item in part.values()]) for _, part in batch])
    return matrices.to(device), targets.to(device)


_SOLVERS: dict[str, Callable[[Batch, int, torch.device], Sequence[Tensor]]] = {
    "lbfgs": _solve_lbfgs,
    "lbfgs-preconditioned": _solve_preconditioned,
    "exact": _solve_exact,
}
