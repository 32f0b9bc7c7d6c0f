"""Three stated fusion problems with raw activations, in float64, for oracle tests.

- `few-rows`: 3 concepts, 18 rows each, width 48: singular, like the text encoder and cross-attention K and V.
- `many-rows`: 3 concepts, 400 rows each, width 40, spectrum falling as 1/k: like the spatial layers.
- `conflict`: 4 concepts, 200 rows each, width 32, that share their dominant input directions and disagree on them.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mos.fusion.problem import LinearProblem, SiteProblem, regularised

NAMES = ("few-rows", "many-rows", "conflict")
RANK = 4
OUT = 36


@dataclass(frozen=True, kw_only=True)
class RawProblem:
    """Inputs X_i [rows, in], up_i [out, rank] and down_i [rank, in] of every concept."""

    inputs: list[torch.Tensor]
    ups: list[torch.Tensor]
    downs: list[torch.Tensor]

    @property
    def deltas(self) -> list[torch.Tensor]:
        return [up @ down for up, down in zip(self.ups, self.downs, strict=True)]

    def loss(self, update: np.ndarray | torch.Tensor) -> float:
        """The mean squared error over rows and outputs, from the raw activations."""
        update = torch.as_tensor(update)
        errors = [((x @ (update - delta).T) ** 2).sum() for x, delta in zip(self.inputs, self.deltas, strict=True)]
        rows = sum(len(x) for x in self.inputs)
        return float(sum(errors)) / (rows * len(update))

    def site(self, *, steps: int = 500, generic: np.ndarray | None = None, **regularisers: float) -> SiteProblem:
        """The same problem on Gram matrices."""
        grams = [(x.T @ x).numpy() for x in self.inputs]
        linear = LinearProblem(
            ups=tuple(up.numpy() for up in self.ups),
            projected=tuple(down.numpy() @ gram for down, gram in zip(self.downs, grams, strict=True)),
        )
        return SiteProblem(
            site="site",
            matrix=regularised(sum(grams[1:], grams[0]), generic=generic, **regularisers),
            num_rows=sum(len(x) for x in self.inputs),
            linears={"linear": linear},
            steps=steps,
        )


def raw_problem(name: str, seed: int = 0) -> RawProblem:
    """Build one of the three problems."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    concepts, rows, width = {"few-rows": (3, 18, 48), "many-rows": (3, 400, 40), "conflict": (4, 200, 32)}[name]
    spectrum = torch.arange(1, width + 1, dtype=torch.float64) ** (-0.5 if name == "few-rows" else -1.0)
    rotation = torch.linalg.qr(normal(width, width)).Q
    inputs = [normal(rows, width) * spectrum @ rotation for _ in range(concepts)]
    if name == "many-rows":
        inputs = [x + 0.5 * normal(1, width) for x in inputs]
    ups = [normal(OUT, RANK) for _ in range(concepts)]
    downs = [normal(RANK, width) / width for _ in range(concepts)]
    return RawProblem(inputs=inputs, ups=ups, downs=downs)
