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
    """Mean and interval under it: one row a metric, one column a cell."""
    shown = ordered(cells)
    metrics = [metric for metric in METRICS if any(metric.name in cell.intervals for cell in shown)]
    body: list[list[str | tuple[str, str]]] = []
    for metric in metrics:
        row: list[str | tuple[str, str]] = [metric.label]
        for cell in shown:
            value = cell.intervals.get(metric.name)
            row.append("" if value is None else (f"{value.mean:.3f}", f"{value.low:.3f} – {value.high:.3f}"))
        body.append(row)
    body.append(["pictures", *(str(cell.count) for cell in shown)])
    names = [cell.method for cell in shown]
    return Table(
        columns=["", *names],
        rows=body,
        numeric=range(1, len(shown) + 1),
        emphasised_column=1 + names.index(highlight) if highlight in names else None,
        note=note,
    )


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
