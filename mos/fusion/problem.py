"""The fusion problem of one input site, and its reduction to the few rows that can differ from zero.

Fusion minimises sum_i ||(E - U_i V_i) X_i||^2 over the update E of a linear (Mix-of-Show, arXiv:2305.18292,
eq. 4), which depends on the inputs only through the Gram matrices G_i = X_i^T X_i. With an orthonormal basis Q of
span([U_1..U_n]) the update is E = Q Y, and Y minimises

    tr(Y A Y^T) - 2 tr(Y C^T),    A = sum_i G_i (+ regularisation),    C = sum_i Q^T U_i (V_i G_i).

Q keeps inner products, so gradient methods started at zero take the same path in Y as in E.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mos.fusion.errors import FusionError
from mos.fusion.statistics import Float64, tensor_of


@dataclass(frozen=True, kw_only=True)
class LinearProblem:
    """The concepts' wishes for one linear: delta_i = ups_i downs_i, to be met on inputs with Gram matrix G_i.

    Attributes:
        ups: U_i, [out, rank_i] each, one a concept in a fixed order; scales absorbed; float32,
            the concept's own memory.
        projected: V_i G_i, [rank_i, in] each.
    """

    ups: tuple[npt.NDArray[np.floating[Any]], ...]
    projected: tuple[Float64, ...]


@dataclass(frozen=True, kw_only=True)
class SiteProblem:
    """All linears that read one input site; they share the quadratic term.

    Attributes:
        site: Its name, for messages.
        matrix: A, [in, in], float64: the summed Gram matrices and whatever regularises them.
        num_rows: Rows behind the Gram matrices; the paper's loss is a mean over rows and outputs.
        linears: The linears by name.
        steps: How many LBFGS steps the paper's solver takes here.
    """

    site: str
    matrix: Float64
    num_rows: int
    linears: Mapping[str, LinearProblem]
    steps: int


@dataclass(frozen=True, kw_only=True)
class LinearSolution:
    """The fused update of one linear, E = up @ down, of rank at most the sum of the concepts' ranks.

    Attributes:
        up: Q, [out, k], orthonormal columns, float64.
        down: Y, [k, in], float64.
    """

    up: Float64
    down: Float64


@dataclass(frozen=True, kw_only=True)
class SiteSolution:
    """The solved linears of one site."""

    site: str
    linears: Mapping[str, LinearSolution]


@dataclass(frozen=True, kw_only=True)
class ReducedLinear:
    """A linear's problem on the orthonormal basis of its updates.

    Attributes:
        basis: Q, [out, k].
        target: C, [k, in].
    """

    basis: torch.Tensor
    target: torch.Tensor


def reduce_linear(problem: LinearProblem) -> ReducedLinear:
    """Express a linear's problem on an orthonormal basis of span([U_1..U_n]).

    The basis comes from a QR factorisation; where the U_i are linearly dependent some of its columns lie outside
    their span, and the corresponding rows of the target are zero up to rounding.
    """
    ups = tensor_of(np.concatenate(problem.ups, axis=1, dtype=np.float64))
    projected = tensor_of(np.concatenate(problem.projected, axis=0))
    basis = torch.linalg.qr(ups).Q
    return ReducedLinear(basis=basis, target=basis.T @ ups @ projected)


def regularised(
    gram: Float64, *, generic: Float64 | None = None, generic_weight: float = 0.0, ridge: float = 0.0
) -> Float64:
    """Add what keeps the update small where the concepts say nothing.

    A = gram + generic_weight * (tr gram / tr generic) * generic + ridge * mean(diag gram) * I

    Args:
        gram: Summed Gram matrix of the concepts, [in, in].
        generic: Gram matrix of inputs under generic prompts, on which the update should be zero.
        generic_weight: Weight of the generic prompts relative to all concepts together.
        ridge: Pull of every direction toward the base weight, relative to the mean input energy.
    """
    matrix = gram.copy()
    trace = float(np.trace(gram))
    if generic is not None and generic_weight > 0:
        generic_trace = float(np.trace(generic))
        if generic_trace > 0:
            matrix += (generic_weight * trace / generic_trace) * generic
    if ridge > 0:
        matrix[np.diag_indices_from(matrix)] += ridge * trace / len(gram)
    return matrix


def check_problem(problem: SiteProblem) -> None:
    """Refuse a problem with shapes that do not fit or values that are not finite.

    Raises:
        FusionError: Naming the site and the linear.
    """
    width = problem.matrix.shape[0]
    if problem.matrix.shape != (width, width) or not np.isfinite(problem.matrix).all():
        raise FusionError(f"{problem.site}: its {problem.matrix.shape} Gram matrix is not square and finite")
    for name, linear in problem.linears.items():
        ranks = [up.shape[1] for up in linear.ups]
        if [rows.shape for rows in linear.projected] != [(rank, width) for rank in ranks]:
            raise FusionError(f"{name}: ranks {ranks} do not fit projected rows of width {width}")
        if not all(np.isfinite(array).all() for array in (*linear.ups, *linear.projected)):
            raise FusionError(f"{name}: a concept's weights or inputs are not finite; leave that concept out")


def residual_energy(solution: LinearSolution, up: Float64, down: Float64, gram: Float64) -> tuple[float, float]:
    """How far a solution is from one concept's wish on inputs with Gram matrix `gram`.

    Returns:
        (tr(F G F^T), tr(D G D^T)) with D = up down and F = E - D: the squared error over all inputs, and the same
        of the base model (E = 0). Evaluated on F itself, because the expanded form cancels near the optimum.
    """
    left = np.concatenate([solution.up, -up], axis=1)
    right = np.concatenate([solution.down, down], axis=0)
    return factored_energy(left, right, gram), factored_energy(up, down, gram)


def factored_energy(left: Float64, right: Float64, gram: Float64) -> float:
    """tr(M G M^T) of M = left @ right, without forming M: never below zero."""
    if left.shape[1] == 0:
        return 0.0
    triangle = np.linalg.qr(left, mode="r")
    rows = triangle @ right
    return max(float(np.einsum("ij,ij->", rows @ gram, rows)), 0.0)
