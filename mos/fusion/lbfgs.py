"""LBFGS on batches of quadratics: one product with the Gram matrix a step, whatever the line search asks.

Along a direction d the loss is an exact parabola, known from two numbers, so torch's strong-Wolfe search is
arithmetic on them and no step needs a second evaluation. The inverse Hessian is applied in the compact form of
Byrd, Nocedal and Schnabel (1994), eq. 3.1, which reads the history twice a step and batches over problems.

Equal to torch.optim.LBFGS on the full form to 1e-10 for the first ten steps. LBFGS then amplifies rounding about
tenfold a step: from step 20 on, two runs that differ in rounding alone differ by 0.1-5 %, torch's as well. The loss
they reach is the same, and bits are equal between runs and between batches because every operation here computes a
problem's numbers independently of the rest of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensor = torch.Tensor

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
MAX_EVALUATIONS = 25
"""Constants of torch.optim.LBFGS's strong-Wolfe search."""


@dataclass(frozen=True, kw_only=True)
class Quadratics:
    """A batch of problems: minimise scale * (tr(Y A Y^T) - 2 tr(Y C^T)) over Y.

    Attributes:
        matrices: A, [sites, in, in], symmetric positive semi-definite, float64.
        targets: C, [sites, linears, k, in]: the linears of a site share its A.
        scales: [sites, linears], positive.
    """

    matrices: Tensor
    targets: Tensor
    scales: Tensor

    @property
    def num_problems(self) -> int:
        """Problems in the batch."""
        return self.targets.shape[0] * self.targets.shape[1]

    def gradient_at_zero(self) -> Tensor:
        """The gradient at Y = 0, [problems, k * in]."""
        return (-2.0 * self.scales[..., None, None] * self.targets).reshape(self.num_problems, -1)

    def times_hessian(self, directions: Tensor) -> Tensor:
        """The Hessian times directions, both [problems, k * in]."""
        sites, linears, rank, width = self.targets.shape
        products = _products(directions.reshape(sites, linears * rank, width), self.matrices)
        return products.reshape(self.num_problems, -1) * (2.0 * self.scales.reshape(-1, 1))


def minimise(
    problems: Quadratics, *, first_step: Tensor, steps: int, history: int = 25, tolerance: float = 1e-14
) -> Tensor:
    """Run LBFGS from zero on every problem at once.

    Every accepted step lowers the loss, so the last iterate is the best one.

    Args:
        problems: The batch.
        first_step: Length of the first step along minus the gradient, [sites, linears]; later ones start at 1.
        steps: Largest number of steps.
        history: Pairs of steps and gradient changes that shape the inverse Hessian.
        tolerance: A problem stops when its gradient falls below this part of the first one.

    Returns:
        Y, [sites, linears, k, in].
    """
    gradient = problems.gradient_at_zero()
    position = torch.zeros_like(gradient)
    enough = gradient.norm(dim=1) * tolerance
    pairs = _History(gradient, history)
    direction, length = -gradient, first_step.reshape(-1)
    for step in range(steps):
        change = problems.times_hessian(direction)
        slope = _dot(gradient, direction)
        moving = (slope < 0) & (gradient.norm(dim=1) > enough)
        if not bool(moving.any()):
            break
        length = torch.where(moving, step_lengths(slope, _dot(direction, change), length), 0.0)
        moved, changed = direction * length[:, None], change * length[:, None]
        position += moved
        gradient += changed
        if step + 1 < steps:
            direction, length = -pairs.push(moved, changed, gradient), torch.ones_like(length)
    return position.reshape(problems.targets.shape)


def step_lengths(slope: Tensor, curvature: Tensor, initial: Tensor) -> Tensor:
    """Lengths torch's strong-Wolfe search accepts on phi(t) = slope * t + curvature / 2 * t^2, each [problems].

    The search interpolates cubically; on a parabola that is exact, so a bracketed minimum is hit at once, and while
    the slope stays steep the length grows at most tenfold a trial.
    """
    minimum = -slope / curvature.clamp_min(torch.finfo(slope.dtype).tiny)
    previous, length = torch.zeros_like(initial), initial.clone()
    for _ in range(MAX_EVALUATIONS):
        overshoots = (curvature / 2 * length + slope > SUFFICIENT_DECREASE * slope) | (
            curvature * length + slope > -CURVATURE * slope
        )
        is_steep = ~overshoots & (curvature * length + slope < CURVATURE * slope)
        if not bool(is_steep.any()):
            return torch.where(overshoots, minimum, length)
        grown = torch.minimum(torch.maximum(minimum, length + 0.01 * (length - previous)), 10 * length)
        previous = torch.where(is_steep, length, previous)
        length = torch.where(overshoots, minimum, torch.where(is_steep, grown, length))
    return length


class _History:
    """The last pairs (s, y) of every problem, with the inner products the compact form needs.

    Small products depend in their last bits on where their operands lie in memory, and bmm on the size of its batch.
    Every problem therefore gets products of its own, on operands that start at multiples of 64 bytes.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self._size, self._capacity = size, -(-(size + 4) // 16) * 16
        problems, length = like.shape
        self._pairs = like.new_empty(problems, self._capacity, 2, length)
        self._steps_changes = like.new_zeros(problems, self._capacity, self._capacity)
        self._changes_changes = like.new_zeros(problems, self._capacity, self._capacity)
        self._gamma = like.new_ones(problems)
        self._start = self._end = 0

    def push(self, step: Tensor, change: Tensor, gradient: Tensor) -> Tensor:
        """Append a pair and return the inverse Hessian's approximation times the gradient, all [problems, length].

        A pair without curvature is stored as nothing.
        """
        if self._end == self._capacity:
            self._shift()
        inner, square = _dot(step, change), _dot(change, change)
        is_valid = inner > 0
        self._gamma = torch.where(is_valid, inner / square.clamp_min(torch.finfo(inner.dtype).tiny), self._gamma)
        new = self._end
        self._pairs[:, new, 0] = torch.where(is_valid[:, None], step, 0.0)
        self._pairs[:, new, 1] = torch.where(is_valid[:, None], change, 0.0)
        self._end = new + 1
        self._start = max(self._start, self._end - self._size)
        along_gradient, along_change = self._along(gradient, self._pairs[:, new, 1])
        window = slice(self._start, self._end)
        self._steps_changes[:, window, new] = along_change[:, :, 0]
        self._steps_changes[:, new, new] = torch.where(is_valid, along_change[:, -1, 0], 1.0)
        self._changes_changes[:, window, new] = along_change[:, :, 1]
        self._changes_changes[:, new, window] = along_change[:, :, 1]
        return self._times_inverse_hessian(gradient, along_gradient)

    def _along(self, *vectors: Tensor) -> Sequence[Tensor]:
        """Inner products of each vector with every pair: [problems, count, 2], steps before changes."""
        count = self._end - self._start
        pairs = self._pairs[:, self._start : self._end].flatten(1, 2)
        columns = torch.stack(vectors, dim=1)
        products = pairs.new_empty(len(pairs), 2 * self._capacity, len(vectors))
        for index in range(len(pairs)):
            torch.mm(pairs[index], columns[index].T, out=products[index, : 2 * count])
        found = products[:, : 2 * count].reshape(len(pairs), count, 2, len(vectors))
        return [found[..., index] for index in range(len(vectors))]

    def _times_inverse_hessian(self, gradient: Tensor, along: Tensor) -> Tensor:
        window, count = slice(self._start, self._end), self._end - self._start
        triangle = torch.eye(self._capacity, dtype=along.dtype, device=along.device).repeat(len(along), 1, 1)
        triangle[:, :count, :count] = torch.triu(self._steps_changes[:, window, window])
        overlap = torch.zeros_like(triangle)
        overlap[:, :count, :count] = self._changes_changes[:, window, window]
        along_steps, along_changes = along.new_zeros(2, len(along), self._capacity, 1)
        along_steps[:, :count, 0], along_changes[:, :count, 0] = along[:, :, 0], along[:, :, 1]
        gamma = self._gamma[:, None, None]
        weights = torch.linalg.solve_triangular(triangle, along_steps, upper=True)
        inner = triangle.diagonal(dim1=1, dim2=2)[..., None] * weights
        inner += gamma * ((overlap * weights.transpose(1, 2)).sum(dim=2, keepdim=True) - along_changes)
        of_steps = torch.linalg.solve_triangular(triangle.transpose(1, 2), inner, upper=False)
        coefficients = torch.cat([of_steps, -gamma * weights], dim=2)
        pairs = self._pairs[:, window].flatten(1, 2)
        result = gradient * self._gamma[:, None]
        for index in range(len(pairs)):
            result[index] += torch.mv(pairs[index].T, coefficients[index, :count].flatten())
        return result

    def _shift(self) -> None:
        kept = slice(self._end - self._size + 1, self._end)
        count = self._size - 1
        self._pairs[:, :count] = self._pairs[:, kept].clone()
        for products in (self._steps_changes, self._changes_changes):
            products[:, :count, :count] = products[:, kept, kept].clone()
        self._start, self._end = 0, count


def _products(left: Tensor, right: Tensor) -> Tensor:
    """left [sites, n, m] @ right [sites, m, m], one by one for the same reason as `_History`."""
    result = torch.empty_like(left)
    for index in range(len(left)):
        torch.mm(left[index], right[index], out=result[index])
    return result


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=1)
