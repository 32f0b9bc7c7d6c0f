"""The trainable parameters of several concepts side by side, and their optimiser.

Every group of parameters (word embeddings, text-encoder LoRA, U-Net LoRA) is one matrix [K, P]: a row a
concept. The tensors the model works with are views of it with a leading slot dimension, [K, rank, in] and
[K, out, rank], and their gradients are gathered in one matrix, so that AdamW is a dozen operations on
matrices, with a step count, learning rate and decay a row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What AdamW needs to know of one concept's row at one step; ``step`` counts from 1."""

    lr: float
    step: int
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float


class SlotBank:
    """One group of parameters for K concepts.

    Args:
        shapes: parameter name -> shape without the slot dimension, in a fixed order.
        device: where the matrices live.
        dtype: of parameters, gradients and moments.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.shapes = dict(shapes)
        width = sum(math.prod(shape) for shape in self.shapes.values())
        self.values, self.first, self.second, self.gradient = (
            torch.zeros(0, width, device=device, dtype=dtype) for _ in range(4)
        )
        self.leaves: dict[str, Tensor] = {}
        self._gradient_views: list[Tensor] = []

    @property
    def num_slots(self) -> int:
        """K."""
        return self.values.shape[0]

    @property
    def width(self) -> int:
        """P, parameters a concept."""
        return self.values.shape[1]

    def append(self, values: Tensor, first: Tensor | None = None, second: Tensor | None = None) -> None:
        """Add a concept's row [P] and its moments (zero when it starts)."""
        zero = torch.zeros_like(values)
        self.values = self._stack(self.values, values)
        self.first = self._stack(self.first, zero if first is None else first)
        self.second = self._stack(self.second, zero if second is None else second)
        self._bind()

    def remove(self, slot: int) -> None:
        """Drop a concept's row; later rows move up."""
        keep = [index for index in range(self.num_slots) if index != slot]
        self.values, self.first, self.second = self.values[keep], self.first[keep], self.second[keep]
        self._bind()

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Flatten one concept's tensors (name -> its shape) into a row [P]."""
        if not self.shapes:
            return self.values.new_zeros(0)
        row = torch.cat([tensors[name].flatten() for name in self.shapes])
        return row.to(self.values.device, self.values.dtype)

    def unpack(self, slot: int) -> dict[str, Tensor]:
        """Return copies of one concept's tensors by name."""
        return {name: leaf[slot].detach().clone() for name, leaf in self.leaves.items()}

    def zero_grad(self) -> None:
        """Clear the gradients of all concepts."""
        self.gradient.zero_()

    def add_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients, one a leaf in order (None where the loss does not depend on it), to the matrix."""
        for view, gradient in zip(self._gradient_views, gradients, strict=True):
            if gradient is not None:
                view.add_(gradient)

    def squared_gradient_norms(self) -> Tensor:
        """Return every concept's squared gradient norm [K], float64; not finite where the gradient is not."""
        return self.gradient.double().square().sum(dim=1)

    @torch.no_grad()
    def update(self, rows: Mapping[int, RowSettings]) -> None:
        """Take one AdamW step for the given rows; the others stay bit for bit what they are.

        Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), as ``torch.optim.AdamW``.
        """
        if not rows or not self.width:
            return
        if len(rows) == self.num_slots:
            _adamw(self.values, self.first, self.second, self.gradient, [rows[slot] for slot in sorted(rows)])
            return
        chosen = sorted(rows)
        values, first, second = self.values[chosen], self.first[chosen], self.second[chosen]
        _adamw(values, first, second, self.gradient[chosen], [rows[slot] for slot in chosen])
        self.values[chosen], self.first[chosen], self.second[chosen] = values, first, second

    def _stack(self, matrix: Tensor, row: Tensor) -> Tensor:
        return torch.cat([matrix, row.to(matrix.device, matrix.dtype)[None]])

    def _bind(self) -> None:
        """Make every parameter a leaf that is a view of the matrix."""
        self.gradient = torch.zeros_like(self.values)
        self.leaves, self._gradient_views, start = {}, [], 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            leaf = self.values[:, start:stop].view(self.num_slots, *shape).detach()
            self.leaves[name] = leaf.requires_grad_(True)
            self._gradient_views.append(self.gradient[:, start:stop].view(self.num_slots, *shape))
            start = stop


def _adamw(values: Tensor, first: Tensor, second: Tensor, gradient: Tensor, rows: list[RowSettings]) -> None:
    def column(numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=values.dtype, device=values.device)[:, None]

    beta1, beta2 = column([row.betas[0] for row in rows]), column([row.betas[1] for row in rows])
    rates = column([row.lr / (1 - row.betas[0] ** row.step) for row in rows])
    roots = column([math.sqrt(1 - row.betas[1] ** row.step) for row in rows])
    values.mul_(column([1 - row.lr * row.weight_decay for row in rows]))
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient * (1 - beta2), gradient)
    denominator = second.sqrt().div_(roots).add_(column([row.epsilon for row in rows]))
    values.sub_(first.div(denominator).mul_(rates))
