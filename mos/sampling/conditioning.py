"""What the U-Net attends to while it draws: the global prompt and one encoding for every region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mos.edlora.tokens import PromptEncoding


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioning:
    """One branch of guidance.

    Attributes:
        segments: The global prompt, then the regions, each [batch, layers, tokens, dim]; before
            :meth:`rows` has chosen pictures, what all of them share may have a batch of 1.
        pooled: [batch, dim] of the global prompt (SDXL), else None.
    """

    segments: tuple[Tensor, ...]
    pooled: Tensor | None = None

    @classmethod
    def of(cls, encoding: PromptEncoding | Conditioning) -> Conditioning:
        """Take an encoding as the global prompt of a picture without regions."""
        if isinstance(encoding, Conditioning):
            return encoding
        return cls(segments=(encoding.context,), pooled=encoding.pooled)

    @property
    def batch_size(self) -> int:
        """Number of pictures."""
        return self.segments[0].shape[0]

    def rows(self, indices: Sequence[int]) -> Conditioning:
        """The same for some of the pictures; a segment of one row serves them all."""
        chosen = torch.tensor(list(indices), device=self.segments[0].device)

        def pick(rows: Tensor) -> Tensor:
            return rows.expand(len(chosen), *rows.shape[1:]) if len(rows) == 1 else rows[chosen]

        return Conditioning(
            segments=tuple(pick(segment) for segment in self.segments),
            pooled=None if self.pooled is None else pick(self.pooled),
        )


def joined(negative: Conditioning, positive: Conditioning) -> Conditioning:
    """Both branches in one batch, the negative one first."""
    pairs = zip(negative.segments, positive.segments, strict=True)
    pooled = None
    if negative.pooled is not None and positive.pooled is not None:
        pooled = torch.cat([negative.pooled, positive.pooled])
    return Conditioning(segments=tuple(torch.cat(pair) for pair in pairs), pooled=pooled)
