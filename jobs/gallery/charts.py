"""Means with their intervals as SVG: one chart a metric, one row a method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.gallery.document import escape
from mos.evaluation.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class ChartRow:
    """One method's value; `tone` is "method", "best", "ceiling" or "floor"."""

    label: str
    interval: Interval
    tone: str = "method"


_ROW, _LEFT, _WIDTH, _TOP = 24, 150, 480, 8


def interval_chart(title: str, rows: Sequence[ChartRow], *, zero: bool = False) -> str:
    """Dots with whiskers on one common scale; with `zero` the zero line is drawn and kept in view."""
    low, high = _range(rows, zero)
    height = _TOP + _ROW * len(rows) + 26
    right = _WIDTH - 58

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (right - _LEFT)

    parts = [_scale(low, high, x, _TOP + _ROW * len(rows))]
    if zero:
        bottom = _TOP + _ROW * len(rows)
        parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{_TOP}" y2="{bottom}"/>')
    for index, row in enumerate(rows):
        parts.append(_row(row, _TOP + index * _ROW + _ROW / 2, x))
    label = f"{title}: " + "; ".join(f"{row.label} {row.interval}" for row in rows)
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH} {height}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _row(row: ChartRow, y: float, x: Callable[[float], float]) -> str:
    value = row.interval
    return (
        f'<g class="{escape(row.tone)}"><title>{escape(row.label)}: {value} from {value.count}</title>'
        f'<text class="label" x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(row.label)}</text>'
        f'<line class="whisker" x1="{x(value.low):.1f}" x2="{x(value.high):.1f}" y1="{y}" y2="{y}"/>'
        f'<circle class="dot" cx="{x(value.mean):.1f}" cy="{y}" r="4.5"/>'
        f'<text class="value" x="{_WIDTH - 4}" y="{y + 4}" text-anchor="end">{value.mean:.3f}</text></g>'
    )


def _range(rows: Sequence[ChartRow], zero: bool) -> tuple[float, float]:
    """The span of all intervals with a margin, never empty."""
    low = min([row.interval.low for row in rows] + ([0.0] if zero else []))
    high = max([row.interval.high for row in rows] + ([0.0] if zero else []))
    margin = max((high - low) * 0.06, 1e-3)
    return low - margin, high + margin


def _scale(low: float, high: float, x: Callable[[float], float], bottom: float) -> str:
    """Grid lines at round values under the rows."""
    step = round_step(high - low)
    first = int(low // step) + 1
    parts = []
    for index in range(first, int(high // step) + 1):
        value = index * step
        parts.append(f'<line class="rule" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>')
    return "".join(parts)


def round_step(length: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that gives at most five marks."""
    step = 1e-4
    while True:
        for factor in (1, 2, 5):
            if length / (step * factor) <= 5:
                return step * factor
        step *= 10
