"""What `benchmarks.fusion_curve` leaves for readers: a Parquet table, a figure, and picture grids before and after."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from jobs.gallery.lines import Line, Panel, line_figure
from mos.evaluation.drawing import FLOOR_BASE, MARKS
from mos.evaluation.intervals import bootstrap_mean
from mos.evaluation.results import METRICS, values_of

if TYPE_CHECKING:
    from benchmarks.fusion_curve import Curve
    from cluster.evaluation_rows import ScoredPicture

Cells = Mapping[tuple[str, int], Sequence["ScoredPicture"]]
PANELS = (
    ("probe_identity", "identity kept (probe)"),
    ("probe_pattern", "pattern kept (probe)"),
    ("probe_backdrop", "backdrop as asked (probe)"),
    ("image_alignment_pairwise", "image-alignment (pairwise)"),
    ("text_alignment", "text-alignment"),
    ("drift cross-attention", "drift of keys and values"),
)
GRID_COLUMNS = ("ceiling: renders", "single", "gradient, lbfgs", "average", "sum")


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One metric of one method at one size: mean and bootstrap interval over pictures.

    Attributes:
        method: Strategy and solver, `single`, or a mark.
        num_concepts: How many were fused; of `single` and the marks, how many of them were drawn.
        metric: As in `mos.evaluation.results`, or `fit`, `held_out` or `drift` and a stage.
        mean: Over pictures; over concepts for errors of the fusion.
        low: Lower end of the 95 % interval; the mean where there is none.
        high: Upper end.
        count: Pictures or concepts behind it.
    """

    method: str
    num_concepts: int
    metric: str
    mean: float
    low: float
    high: float
    count: int


def summary(curve: "Curve", cells: Cells) -> list[SummaryRow]:
    """Every metric of every cell; single concepts and marks at every size, on the concepts fused there."""
    from benchmarks.fusion_curve import SINGLE

    rows: list[SummaryRow] = []
    for (method, size), pictures in cells.items():
        is_unfused = method in (SINGLE, FLOOR_BASE, *MARKS)
        for count in curve.config.sizes if is_unfused else (size,):
            kept = {str(subject.ref) for subject in curve.subjects(count)}
            rows += _picture_rows(method, count, [item for item in pictures if item.score.concept in kept])
        if not is_unfused:
            rows += _fusion_rows(method, size, curve.fused(method, size).report)
    return rows


def _picture_rows(method: str, size: int, pictures: Sequence["ScoredPicture"]) -> list[SummaryRow]:
    rows = []
    for metric in METRICS:
        values = list(values_of([item.score for item in pictures], metric.name).values())
        if values:
            found = bootstrap_mean(values)
            interval = {"mean": found.mean, "low": found.low, "high": found.high, "count": found.count}
            rows.append(SummaryRow(method=method, num_concepts=size, metric=metric.name, **interval))  # type: ignore[arg-type]
    return rows


def _fusion_rows(method: str, size: int, report: Mapping[str, object]) -> list[SummaryRow]:
    values: dict[str, list[float]] = {"fusion CPU s": [float(str(report["cpu_seconds"]))]}
    stages: Mapping[str, Mapping[str, object]] = report["stages"]  # type: ignore[assignment]
    for stage, figures in stages.items():
        concepts: Mapping[str, Mapping[str, float]] = figures["concepts"]  # type: ignore[assignment]
        for name in ("fit", "held_out"):
            values[f"{name} {stage}"] = [concept[name] for concept in concepts.values()]
        values[f"drift {stage}"] = [float(str(figures["drift"]))]
    return [
        SummaryRow(
            method=method,
            num_concepts=size,
            metric=metric,
            mean=sum(found) / len(found),
            low=min(found),
            high=max(found),
            count=len(found),
        )
        for metric, found in values.items()
    ]


def write_documents(curve: "Curve", cells: Cells, table: Sequence[SummaryRow], folder: Path) -> None:
    """Write curve.parquet, curve.svg, and a grid a size of 3 and 10 where those were drawn."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    columns = pa.Table.from_pylist([asdict(row) for row in table])
    pq.write_table(columns, folder / "curve.parquet", compression="zstd")
    (folder / "curve.svg").write_text(curve_figure(table, curve.config.sizes))
    for size in {3, 10} & set(curve.config.sizes):
        picture_grid(curve, cells, size, prompts=2 if size == 3 else 1).quantize(128).save(
            folder / f"grid-{size}.png", optimize=True
        )
    print(f"wrote {folder}")


def picture_grid(curve: "Curve", cells: Cells, size: int, *, prompts: int, side: int = 128) -> Image.Image:
    """A row a concept and prompt: the identity itself, alone, and in every kind of fusion, from the same noise."""
    rows = [(str(subject.ref), number) for subject in curve.subjects(size) for number in range(prompts)]
    label = 16
    sheet = Image.new("RGB", (len(GRID_COLUMNS) * side, len(rows) * (side + label) + label), "white")
    draw = ImageDraw.Draw(sheet)
    for across, method in enumerate(GRID_COLUMNS):
        title = {"ceiling: renders": "the identity", "single": "alone"}.get(method, f"{method}, {size}")
        draw.text((across * side + 3, 2), title, fill="black")
        own = cells.get((method, size)) or cells[method, max(curve.config.sizes)]
        for down, (concept, number) in enumerate(rows):
            item = [found for found in own if found.score.concept == concept][number]
            place = (across * side, label + down * (side + label))
            picture = Image.open(io.BytesIO(item.png)).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, place)
            if across == 0:
                text = item.score.prompt.replace("<TOK>", concept.partition("/")[2].partition("@")[0])
                draw.text((3, place[1] + side + 1), text, fill="black")
    return sheet


def curve_figure(table: Sequence[SummaryRow], sizes: Sequence[int]) -> str:
    """One panel a metric, number of concepts across, a line a method, as SVG."""
    from benchmarks.fusion_curve import METHODS, SINGLE

    def line(method: str, metric: str) -> Line:
        points = sorted((row.num_concepts, row.mean) for row in table if row.method == method and row.metric == metric)
        return Line(label=method, points=points, is_reference=method == SINGLE)

    return line_figure(
        [Panel(title=title, lines=[line(method, metric) for method in (*METHODS, SINGLE)]) for metric, title in PANELS],
        sizes,
    )
