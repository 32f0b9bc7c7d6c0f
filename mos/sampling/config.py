"""How pictures are drawn: steps, guidance, size and scheduler, with the paper's figures as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mos.errors import BadInputError

BleedingGuard = Literal["none", "self-attention", "blend", "windows"]
GUARDS: tuple[BleedingGuard, ...] = ("none", "self-attention", "blend", "windows")
"""What may keep one region's concept out of another; :mod:`mos.sampling.denoising` says how each works."""

GUARD_UNTIL: Mapping[BleedingGuard, float] = {"none": 0.0, "self-attention": 0.4, "blend": 0.4, "windows": 0.8}
"""How long each guard acts unless told otherwise, as a fraction of the steps."""

SMALL_WORLD_GUIDANCE = 3.0
"""What suits the small world's base: from 5 on, a concept's pictures get specks where nothing should be."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Options of one sampling run; everything that changes the picture besides prompts, regions and seeds.

    Attributes:
        num_inference_steps: Denoising steps (50 in Mix-of-Show).
        guidance_scale: Classifier-free guidance (7.5 in Mix-of-Show); 1 runs a single branch.
        height: Picture height in pixels; None takes the base model's.
        width: Picture width in pixels; None takes the base model's.
        scheduler: Name of a diffusers scheduler class or one of the short names in
            :mod:`mos.sampling.schedulers`; None is DPM-Solver++ on the base's noise schedule.
        batch_size: Pictures denoised together; memory, not the picture, depends on it.
        bleeding_guard: What keeps one region's concept out of another early in sampling: self-attention
            limited to cells that share a prompt, or every prompt denoised by itself and mixed by region, over
            the whole picture (`blend`) or within the window around its region (`windows`, after which
            self-attention stays limited to the end).
        guard_until: Fraction of the steps, from the first, during which the guard acts; 0 is no guard, None is
            what suits the guard (`GUARD_UNTIL`).
        truncate: Cut prompts that are too long instead of refusing them.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None
    batch_size: int = 8
    bleeding_guard: BleedingGuard = "none"
    guard_until: float | None = None
    truncate: bool = False

    def __post_init__(self) -> None:
        problems = [text for holds, text in self._range_checks() if not holds]
        if problems:
            raise BadInputError("sampling options: " + "; ".join(problems))

    @property
    def guarded_part(self) -> float:
        """The fraction of the steps during which the guard acts."""
        return GUARD_UNTIL[self.bleeding_guard] if self.guard_until is None else self.guard_until

    def _range_checks(self) -> tuple[tuple[bool, str], ...]:
        return (
            (
                1 <= self.num_inference_steps <= 1000,
                f"num_inference_steps is {self.num_inference_steps}, expected 1..1000",
            ),
            (
                1.0 <= self.guidance_scale <= 100.0,
                f"guidance_scale is {self.guidance_scale}, expected 1..100 (1 means no guidance)",
            ),
            (_is_size(self.height), f"height is {self.height}, expected 8..4096 pixels"),
            (_is_size(self.width), f"width is {self.width}, expected 8..4096 pixels"),
            (1 <= self.batch_size <= 256, f"batch_size is {self.batch_size}, expected 1..256"),
            (
                self.bleeding_guard in GUARDS,
                f"bleeding_guard is {self.bleeding_guard!r}, expected one of {', '.join(GUARDS)}",
            ),
            (
                self.guard_until is None or 0.0 <= self.guard_until <= 1.0,
                f"guard_until is {self.guard_until}, expected 0..1",
            ),
        )


def _is_size(pixels: int | None) -> bool:
    return pixels is None or 8 <= pixels <= 4096
