"""Solves fusion problems: the paper's LBFGS on the Gram form, the same preconditioned, and exactly."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class _Item:
    """Linears of one site with equal ranks, in coordinates where the quadratic term is positive definite.

    Attributes:
        problem: The site.
        part: The linears, on orthonormal bases of their updates.
        matrix: A, [k, k].
        lift: Back to the full width: Y = Z lift^T, [in, k]; None where nothing was reduced.
        first_step: LBFGS's first step of each linear, [linears].
    """

    problem: SiteProblem
    part: dict[str, ReducedLinear]
    matrix: Tensor
    lift: Tensor | None
    first_step: Tensor

    @property
    def targets(self) -> Tensor:
        """C of each linear, [linears, rank, k]."""
        full = torch.stack([item.target for item in self.part.values()])
        return full if self.lift is None else full @ self.lift

    @property
    def scales(self) -> Tensor:
        """1 / (rows * out) of each linear: the paper's loss is a mean."""
        sizes = [self.problem.num_rows * len(item.basis) for item in self.part.values()]
        return 1.0 / torch.tensor(sizes, dtype=torch.float64)


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
    groups: dict[tuple[int, ...], list[_Item]] = defaultdict(list)
    for problem in problems:
        check_problem(problem)
        for item in _items(problem, torch.device(device)):
            ranks = {linear.target.shape[0] for linear in item.part.values()}
            groups[len(item.matrix), *ranks, len(item.part), problem.steps].append(item)
    found: dict[str, dict[str, LinearSolution]] = defaultdict(dict)
    for (width, rank, num_linears, _), group in groups.items():
        for batch in _batches(group, width * rank * num_linears * 8 * 4 * history):
            for item, rows in zip(batch, _SOLVERS[solver](batch, history), strict=True):
                found[item.problem.site] |= _solutions(item, rows)
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


def _items(problem: SiteProblem, device: torch.device) -> list[_Item]:
    """Split a site by the rank of its linears and reduce it to the range of its matrix."""
    reduced = {name: reduce_linear(linear) for name, linear in problem.linears.items()}
    matrix, lift = _positive_definite(tensor_of(problem.matrix).to(device))
    items = []
    for rank in sorted({item.target.shape[0] for item in reduced.values()}):
        part = {name: item for name, item in reduced.items() if item.target.shape[0] == rank}
        first = _first_steps(problem, part)
        items.append(
            _Item(
                problem=problem,
                part={
                    name: ReducedLinear(basis=item.basis, target=item.target.to(device)) for name, item in part.items()
                },
                matrix=matrix,
                lift=lift,
                first_step=first.to(device),
            )
        )
    return items


def _positive_definite(matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """A itself where it is well conditioned, else A on its range: the dual form, as small as A's numerical rank.

    Rounding leaves a singular Gram matrix with slightly negative eigenvalues, along which LBFGS would run away. Rows
    repeat across layers and prompts, so the rank is read from the spectrum, never from the number of rows.
    """
    triangle: Tensor
    triangle, failed = torch.linalg.cholesky_ex(matrix)
    pivots = triangle.diagonal()
    if not int(failed) and float(pivots.max()) ** 2 <= LARGEST_CONDITION * float(pivots.min()) ** 2:
        return matrix, None
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > RANK_TOLERANCE * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    return torch.diag(values[kept]), vectors[:, kept].contiguous()


def _first_steps(problem: SiteProblem, part: dict[str, ReducedLinear]) -> Tensor:
    """min(1, 1 / |gradient|_1) of the full form, as torch.optim.LBFGS takes its first step."""
    gradients = [
        2 * float((item.basis @ item.target).abs().sum()) / (problem.num_rows * len(item.basis))
        for item in part.values()
    ]
    return torch.tensor([min(1.0, 1 / gradient) if gradient > 0 else 1.0 for gradient in gradients]).double()


def _batches(group: list[_Item], bytes_each: int) -> list[list[_Item]]:
    size = max(1, WORKSPACE_BYTES // max(bytes_each, 1))
    return [group[start : start + size] for start in range(0, len(group), size)]


def _solutions(item: _Item, rows: Tensor) -> dict[str, LinearSolution]:
    full = rows if item.lift is None else rows @ item.lift.T
    return {
        name: LinearSolution(up=linear.basis.numpy(), down=row.cpu().numpy())
        for (name, linear), row in zip(item.part.items(), full, strict=True)
    }


def _site_solution(problem: SiteProblem, linears: dict[str, LinearSolution]) -> SiteSolution:
    for name, linear in linears.items():
        if not np.isfinite(linear.down).all():
            raise FusionError(f"{name}: the solution is not finite; use a larger ridge or the solver exact")
    return SiteSolution(site=problem.site, linears={name: linears[name] for name in problem.linears})


def _solve_lbfgs(batch: list[_Item], history: int) -> Sequence[Tensor]:
    matrices = torch.stack([item.matrix for item in batch])
    problems = Quadratics(
        matrices=matrices,
        targets=torch.stack([item.targets for item in batch]),
        scales=torch.stack([item.scales for item in batch]).to(matrices.device),
    )
    first = torch.stack([item.first_step for item in batch])
    return list(minimise(problems, first_step=first, steps=batch[0].problem.steps, history=history))


def _solve_preconditioned(batch: list[_Item], history: int) -> Sequence[Tensor]:
    """LBFGS in coordinates where A is the identity."""
    results = []
    for item in batch:
        identity = torch.eye(len(item.matrix), dtype=torch.float64, device=item.matrix.device)
        triangle = torch.linalg.cholesky(item.matrix)
        unwhiten = torch.linalg.solve_triangular(triangle, identity, upper=False).T
        ones = torch.ones(1, len(item.part), dtype=torch.float64, device=item.matrix.device)
        whitened = Quadratics(matrices=identity[None], targets=(item.targets @ unwhiten)[None], scales=ones)
        rows = minimise(whitened, first_step=ones, steps=CONVERGENCE_STEPS, history=history)[0]
        results.append(rows @ unwhiten.T)
    return results


def _solve_exact(batch: list[_Item], history: int) -> Sequence[Tensor]:
    """Y = C A^-1 by Cholesky."""
    del history
    results = []
    for item in batch:
        targets = item.targets
        triangle = torch.linalg.cholesky(item.matrix)
        results.append(torch.cholesky_solve(targets.flatten(0, 1).T, triangle).T.reshape(targets.shape))
    return results


_SOLVERS: dict[str, Callable[[list[_Item], int], Sequence[Tensor]]] = {
    "lbfgs": _solve_lbfgs,
    "lbfgs-preconditioned": _solve_preconditioned,
    "exact": _solve_exact,
}
