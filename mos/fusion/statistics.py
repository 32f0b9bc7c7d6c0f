"""What fusion remembers of a concept's inputs: one Gram matrix an input site, additive and of constant size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from mos.fusion.errors import FusionError

Float64 = npt.NDArray[np.float64]


def tensor_of(array: Float64) -> torch.Tensor:
    """The array as a tensor: in place where it may be written, else copied (Ray maps arguments read-only)."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@dataclass(frozen=True, kw_only=True)
class SiteStatistics:
    """The second moments of all inputs that passed one input site.

    Statistics of disjoint recordings add, and a recording can be taken out again.

    Attributes:
        gram: X^T X, [in, in], float64, symmetric.
        num_rows: How many input rows X had.
    """

    gram: Float64
    num_rows: int

    def __add__(self, other: Self) -> Self:
        return type(self)(gram=self.gram + other.gram, num_rows=self.num_rows + other.num_rows)

    def __sub__(self, other: Self) -> Self:
        return type(self)(gram=self.gram - other.gram, num_rows=self.num_rows - other.num_rows)


@dataclass(frozen=True, kw_only=True)
class StageStatistics:
    """Everything one concept (or the generic prompts) leaves behind in one stage; crosses processes as numpy.

    Attributes:
        concept: The concept's reference, or "" for the generic prompts.
        sites: What fusion fits, by site.
        held_out: The same sites on prompts and seeds that fusion never fits; empty where none were asked for.
        seconds: CPU seconds the recording took, of its whole process.
    """

    concept: str
    sites: Mapping[str, SiteStatistics]
    held_out: Mapping[str, SiteStatistics] = field(default_factory=dict)
    seconds: float = 0.0

    def check(self) -> None:
        """Refuse statistics that cannot come from finite activations.

        Raises:
            FusionError: If a Gram matrix is not finite or has a negative diagonal; names concept and site.
        """
        who = self.concept or "generic prompts"
        for name, site in (*self.sites.items(), *self.held_out.items()):
            if not np.isfinite(site.gram).all():
                raise FusionError(
                    f"{who}: inputs of {name} are not finite; train and publish the concept again, or leave it out"
                )
            if (np.diagonal(site.gram) < 0).any() or site.num_rows < 1:
                raise FusionError(
                    f"{who}: the {site.num_rows} recorded inputs of {name} have no valid Gram matrix; record again"
                )


class GramAccumulator:
    """Sums X^T X over batches of rows without keeping them.

    Args:
        precise: Multiply in float64. The few-row stages need it, whose Gram matrices are singular; for spatial
            sites, float32 products summed in float64 cost half and lose nothing that matters.
    """

    def __init__(self, *, precise: bool) -> None:
        self._dtype = torch.float64 if precise else torch.float32
        self._gram: torch.Tensor | None = None
        self._num_rows = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add inputs [..., in]."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).to(self._dtype)
        product = (rows.T @ rows).to(torch.float64)
        self._gram = product if self._gram is None else self._gram.add_(product)
        self._num_rows += len(rows)

    def statistics(self) -> SiteStatistics:
        """The statistics of everything added so far.

        Raises:
            FusionError: If nothing was added.
        """
        if self._gram is None:
            raise FusionError("no inputs were recorded at a site that fusion needs; check that the layer runs at all")
        return SiteStatistics(gram=self._gram.cpu().numpy(), num_rows=self._num_rows)
