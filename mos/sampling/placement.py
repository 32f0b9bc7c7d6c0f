"""Whether each of several concepts stands in its own region, and in no other: judged on crops by the probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mos.sampling.region import Box

if TYPE_CHECKING:
    from PIL import Image

    from mos.evaluation.attributes import Reading
    from mos.evaluation.intervals import Interval
    from mos.smallworld.world import Identity

IDENTITY_PARTS = ("probe_class", "probe_pattern", "probe_accessory", "probe_colour")
LEAST_PARTS = 3
"""A concept counts as found with its class and at least two of pattern, accessory and main colour."""


@dataclass(frozen=True, kw_only=True)
class PlacementRow:
    """One picture, judged.

    Attributes:
        method: How it was drawn.
        count: Concepts in the picture.
        seed: Of the picture.
        found: For each region, whether its own concept is in it.
        leaked: For each region, whether another concept of the picture matches it better than its own.
        classes: For each region, whether at least the class is right.
        nearest: For each region, whether the scorer finds its own concept's references nearest.
    """

    method: str
    count: int
    seed: int
    found: tuple[bool, ...]
    leaked: tuple[bool, ...]
    classes: tuple[bool, ...]
    nearest: tuple[bool, ...]

    @property
    def key(self) -> tuple[str, int, int]:
        """What names the picture."""
        return self.method, self.count, self.seed


@dataclass(frozen=True, kw_only=True)
class PlacementCell:
    """All pictures of one method and count, as shares with intervals over pictures.

    Attributes:
        method: How they were drawn.
        count: Concepts in a picture.
        all_found: Pictures in which every concept is found in its own region.
        found: Regions with their own concept.
        leaked: Regions another concept matches better.
        classes: Regions with the right class.
        nearest: Regions whose own references are nearest by the scorer.
    """

    method: str
    count: int
    all_found: Interval
    found: Interval
    leaked: Interval
    classes: Interval
    nearest: Interval


def crop(picture: Image.Image, box: Box) -> Image.Image:
    """The part of a picture inside a box of fractions."""
    width, height = picture.size
    x0, y0, x1, y1 = box
    return picture.crop((round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)))


def judge(
    readings: Sequence[Reading],
    identities: Sequence[Identity],
    similarities: Sequence[Sequence[float]],
    *,
    method: str,
    seed: int,
) -> PlacementRow:
    """Judge one picture by what the probe reads in each region's crop.

    Args:
        readings: One a region.
        identities: Who should be in each region.
        similarities: [regions][concepts] likeness of each crop to each concept's references.
        method: How the picture was drawn.
        seed: Of the picture.
    """
    from mos.evaluation.attributes import attribute_scores

    found, leaked, classes, nearest = [], [], [], []
    for index, reading in enumerate(readings):
        kept = [attribute_scores(reading, identity) for identity in identities]
        parts = [sum(scores[name] for name in IDENTITY_PARTS) for scores in kept]
        own = parts[index]
        classes.append(kept[index]["probe_class"] == 1.0)
        found.append(classes[-1] and own >= LEAST_PARTS)
        leaked.append(any(other > own for position, other in enumerate(parts) if position != index))
        likeness = list(similarities[index])
        nearest.append(likeness.index(max(likeness)) == index)
    return PlacementRow(
        method=method,
        count=len(identities),
        seed=seed,
        found=tuple(found),
        leaked=tuple(leaked),
        classes=tuple(classes),
        nearest=tuple(nearest),
    )


def summarise(rows: Sequence[PlacementRow]) -> list[PlacementCell]:
    """One cell for every count and method, in the order they appear."""
    from mos.evaluation.intervals import bootstrap_mean

    cells = []
    for count, method in dict.fromkeys((row.count, row.method) for row in rows):
        chosen = [row for row in rows if (row.count, row.method) == (count, method)]

        def share(name: str, chosen: list[PlacementRow] = chosen) -> Interval:
            values = [float(value) for row in chosen for value in getattr(row, name)]
            groups = [row.seed for row in chosen for _ in getattr(row, name)]
            return bootstrap_mean(values, groups=groups)

        cells.append(
            PlacementCell(
                method=method,
                count=count,
                all_found=bootstrap_mean([float(all(row.found)) for row in chosen]),
                found=share("found"),
                leaked=share("leaked"),
                classes=share("classes"),
                nearest=share("nearest"),
            )
        )
    return cells


def table(cells: Sequence[PlacementCell]) -> str:
    """The cells as a Markdown table, in per cent with 95 % intervals."""
    lines = [
        "| concepts | method | pictures | all found | found | leaked | class right | nearest by scorer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        shares = (cell.all_found, cell.found, cell.leaked, cell.classes, cell.nearest)
        written = " | ".join(f"{100 * s.mean:.0f} [{100 * s.low:.0f}, {100 * s.high:.0f}]" for s in shares)
        lines.append(f"| {cell.count} | {cell.method} | {cell.all_found.count} | {written} |")
    return "\n".join(lines)


def row_from_json(data: Mapping[str, object]) -> PlacementRow:
    """Read a row back; lists become tuples."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return PlacementRow(**fields)  # type: ignore[arg-type]
