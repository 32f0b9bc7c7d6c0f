"""What a table leaves to look at: a figure over the number of concepts, and a grid of the same prompts."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from jobs.gallery.lines import Line, Panel, line_figure
from jobs.table_config import FUSIONS, SCALE_ZERO, SINGLES, TableConfig, fused_method
from mos.evaluation.drawing import CEILING_RENDERS, FLOOR_BASE
from mos.evaluation.results import PictureScore, values_of
from mos.evaluation.verdicts import PRIMARY

if TYPE_CHECKING:
    from cluster.evaluation_rows import ScoredPicture

MAX_GRID_ROWS = 7
"""Concepts shown in a grid: one of each class of the small world."""

PANELS = {
    PRIMARY: "identity kept (probe)",
    "probe_pattern": "pattern kept (probe)",
    "probe_accessory": "accessory kept (probe)",
    "image_alignment_pairwise": "image-alignment (pairwise)",
    "text_alignment": "text-alignment",
    "drift": "drift on generic prompts",
}


def kept_figure(scores: Sequence[PictureScore], config: TableConfig) -> str:
    """A panel a metric: fused rows over the number of concepts, and what the same concepts keep alone, as SVG."""

    def line(row: str, metric: str) -> Line:
        points = []
        for size in config.sizes:
            method = row if row in SINGLES else fused_method(row, size)
            among = {str(config.ref(index, seed)) for index in range(size) for seed in range(config.num_seeds)}
            own = [
                score for score in scores if score.method == method and (score.concept in among or not score.concept)
            ]
            values = values_of(own, metric)
            points += [(size, sum(values.values()) / len(values))] if values else []
        return Line(label="ED-LoRA alone" if row in SINGLES else row, points=points, is_reference=row in SINGLES)

    panels = []
    for metric, title in PANELS.items():
        lines = [line(row, metric) for row in (*FUSIONS, "ED-LoRA")]
        panels.append(Panel(title=title, lines=[found for found in lines if found.points]))
    return line_figure([panel for panel in panels if panel.lines], config.sizes)


def grid_sizes(config: TableConfig) -> list[int]:
    """The fusions of which a grid is drawn: the smallest and the largest."""
    return sorted({config.sizes[0], config.sizes[-1]}) if config.sizes else [0]


def write_grid(rows: "Sequence[ScoredPicture]", config: TableConfig, size: int, path: Path) -> None:
    """One row a concept, one column a method fusing `size`: the first prompt's first seed, training seed 0."""
    methods = [CEILING_RENDERS, *SINGLES, SCALE_ZERO, *(fused_method(row, size) for row in FUSIONS), FLOOR_BASE]
    found: dict[tuple[str, str], tuple[int, bytes]] = {}
    for row in rows:
        key = (row.score.concept, row.score.method)
        if row.png and (key not in found or row.score.seed < found[key][0]):
            found[key] = (row.score.seed, row.png)
    shown = size or config.num_concepts
    concepts = [str(config.ref(index, 0)) for index in range(min(shown, MAX_GRID_ROWS))]
    present = [method for method in methods if any((concept, method) in found for concept in concepts)]
    side, top = 96, 66
    sheet = Image.new("RGB", (side * len(present), top + side * len(concepts)), (251, 250, 247))
    draw = ImageDraw.Draw(sheet)
    for column, method in enumerate(present):
        draw.multiline_text((column * side + 4, 4), _wrapped(method), fill=(31, 35, 40), font_size=11)
        for line, concept in enumerate(concepts):
            if (concept, method) in found:
                image = Image.open(io.BytesIO(found[concept, method][1])).resize((side - 4, side - 4))
                sheet.paste(image, (column * side + 2, top + line * side + 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256).save(path, optimize=True)


def _wrapped(text: str) -> str:
    """Words on lines of at most 15 letters."""
    lines = [""]
    for word in text.split():
        lines = [*lines, word] if len(lines[-1]) + len(word) > 14 else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    return "\n".join(lines[-4:])
