"""Tables and charts of scores: methods in rows, metrics in columns, ceilings and floors set apart."""

from collections.abc import Sequence

from jobs.gallery.charts import ChartRow, interval_chart
from jobs.gallery.document import Drawing, Table
from mos.evaluation.results import METRICS, Cell, Difference, metric_named


def is_ceiling(method: str) -> bool:
    """Whether a cell is an upper mark no method can be expected to pass."""
    return method.startswith("ceiling")


def is_floor(method: str) -> bool:
    """Whether a cell is a lower mark: what comes without the identity."""
    return method.startswith("floor")


def ordered(cells: Sequence[Cell]) -> list[Cell]:
    """Ceilings first, then methods, then floors, each in the order given."""
    marks = [cell for cell in cells if is_ceiling(cell.method)]
    lows = [cell for cell in cells if is_floor(cell.method)]
    methods = [cell for cell in cells if not is_ceiling(cell.method) and not is_floor(cell.method)]
    return marks + methods + lows


def score_charts(cells: Sequence[Cell], *, highlight: str = "", note: str = "") -> Drawing:
    """One interval chart a metric that any cell has."""
    drawings = []
    for metric in METRICS:
        rows = [
            ChartRow(label=cell.method, interval=cell.intervals[metric.name], tone=_tone(cell.method, highlight))
            for cell in ordered(cells)
            if metric.name in cell.intervals
        ]
        if rows:
            arrow = "" if metric.higher_is_better else " (lower is better)"
            drawings.append((metric.label + arrow, interval_chart(metric.label, rows)))
    return Drawing(drawings=drawings, note=note)


def score_table(cells: Sequence[Cell], *, highlight: str = "", note: str = "") -> Table:
    """Mean and interval of every metric, one row a cell."""
    rows = ordered(cells)
    metrics = [metric for metric in METRICS if any(metric.name in cell.intervals for cell in rows)]
    body = []
    for cell in rows:
        shown = [cell.intervals.get(metric.name) for metric in metrics]
        body.append([cell.method, str(cell.count), *("" if value is None else str(value) for value in shown)])
    emphasis = [index for index, cell in enumerate(rows) if cell.method == highlight]
    columns = ["", "pictures", *(metric.label for metric in metrics)]
    return Table(columns=columns, rows=body, numeric=range(1, len(columns)), emphasis=emphasis, note=note)


def difference_table(differences: Sequence[Difference], note: str = "") -> Table:
    """Paired differences with their intervals and what they say."""
    words = {True: "better", False: "worse", None: "cannot be told apart"}
    rows = [
        [
            f"{row.method} against {row.baseline}",
            metric_named(row.metric).label,
            f"{row.interval.mean:+.3f}",
            f"[{row.interval.low:+.3f}, {row.interval.high:+.3f}]",
            str(row.interval.count),
            words[row.better],
        ]
        for row in differences
    ]
    return Table(
        columns=["", "score", "difference", "95 % interval", "pairs", "so it is"],
        rows=rows,
        numeric=(2, 3, 4),
        note=note,
    )


def _tone(method: str, highlight: str) -> str:
    if is_ceiling(method):
        return "ceiling"
    if is_floor(method):
        return "floor"
    return "best" if method == highlight else "method"
