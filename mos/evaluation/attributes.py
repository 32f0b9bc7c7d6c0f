"""What is left of an identity in a picture, read by the small world's attribute probe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from mos.smallworld.world import Identity


HUE_TOLERANCE_DEG = 25.0
"""How far the main hue may be off: half the gap the world keeps between an identity's two hues."""


class Reading(Protocol):
    """What a probe sees in a picture, in the world's own names."""

    @property
    def class_name(self) -> str:
        """Class of the subject."""
        ...

    @property
    def pattern(self) -> str:
        """Its pattern."""
        ...

    @property
    def accessory(self) -> str:
        """Its accessory, or "none"."""
        ...

    @property
    def backdrop(self) -> str:
        """Backdrop of the picture."""
        ...

    @property
    def hues(self) -> tuple[float, float]:
        """Its main and second hue in degrees."""
        ...


class Probe(Protocol):
    """Reads attributes off pictures; `mos.smallworld.probe` has the real one."""

    def predict(self, images: Sequence["Image.Image"]) -> Sequence[Reading]:
        """One reading a picture."""
        ...


def attribute_scores(reading: Reading, identity: "Identity", backdrop: str = "") -> dict[str, float]:
    """Which attributes of `identity` the probe finds in the picture, 1 or 0 each.

    `probe_identity` is the share kept of class, pattern, accessory and main colour: the primary measure of
    identity. `probe_exact` asks for all four at once.

    Args:
        reading: What the probe saw.
        identity: What should be there.
        backdrop: Backdrop the prompt asked for; without one there is no backdrop score.
    """
    kept = {
        "probe_class": reading.class_name == identity.class_name,
        "probe_pattern": reading.pattern == identity.pattern,
        "probe_accessory": reading.accessory == identity.accessory,
        "probe_colour": _hue_gap(reading.hues[0], identity.colours[0].hue) <= HUE_TOLERANCE_DEG,
    }
    scores = {name: float(value) for name, value in kept.items()}
    scores["probe_identity"] = sum(scores.values()) / len(kept)
    scores["probe_exact"] = float(all(kept.values()))
    if backdrop:
        scores["probe_backdrop"] = float(reading.backdrop == backdrop)
    return scores


def _hue_gap(first: float, second: float) -> float:
    """Degrees between two hues the short way round."""
    gap = abs(first - second) % 360.0
    return min(gap, 360.0 - gap)
