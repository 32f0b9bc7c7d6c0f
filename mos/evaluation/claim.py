"""The identity claim: how much of each concept is left after fusing, by every strategy, on paired pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mos.evaluation.results import Cell, Difference, PictureScore

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim in words with its answer: True holds, False does not, None cannot be told."""

    statement: str
    holds: bool | None
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt and seed as drawn by each method."""

    concept: str
    prompt: str
    seed: int
    pictures: Mapping[str, "Image.Image"]


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """The identity claim as measured.

    Attributes:
        rows: One a picture.
        cells: One a method, ceilings and floors among them.
        differences: Paired differences of the strategies.
        verdicts: What the differences say.
        examples: Some prompts as every method drew them.
    """

    rows: Sequence[PictureScore]
    cells: Sequence[Cell]
    differences: Sequence[Difference]
    verdicts: Sequence[Verdict]
    examples: Sequence[Example] = ()
