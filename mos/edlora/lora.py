"""A low-rank update of one linear layer."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """The update ``up @ down`` of a weight [out, in]; any scale is already absorbed into ``up``.

    Args:
        up: [out, rank].
        down: [rank, in].
    """

    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise ValueError(f"up {list(self.up.shape)} and down {list(self.down.shape)} do not multiply")

    @property
    def rank(self) -> int:
        """Number of columns of ``up``."""
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight it updates."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self, scale: float = 1.0) -> Tensor:
        """Return ``scale * up @ down`` [out, in]."""
        return (self.up @ self.down) * scale

    def scaled(self, scale: float) -> "LowRank":
        """Return the update times ``scale``."""
        return LowRank(up=self.up * scale, down=self.down)

    def norm(self) -> float:
        """Return the Frobenius norm of the update without forming it (rank x rank Gram matrices)."""
        up, down = self.up.double(), self.down.double()
        squared = ((up.T @ up) * (down @ down.T)).sum()
        return float(torch.clamp(squared, min=0).sqrt())
