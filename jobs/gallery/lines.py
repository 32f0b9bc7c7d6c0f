"""Lines over a few whole numbers as SVG: one panel a metric, one line a method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.gallery.charts import round_step
from jobs.gallery.document import escape

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#c44e52", "#e7969c", "#7f0000")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method in one panel.

    Attributes:
        label: What the legend calls it; lines of one label have one colour in every panel.
        points: Number across and value, by number.
        is_reference: Drawn black and dashed: what the others are measured by.
    """

    label: str
    points: Sequence[tuple[int, float]]
    is_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One metric; its scale starts at zero."""

    title: str
    lines: Sequence[Line]


_WIDTH, _HEIGHT, _COLUMNS = 300, 210, 3
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, _WIDTH - 12, 26, _HEIGHT - 28


def line_figure(panels: Sequence[Panel], numbers: Sequence[int]) -> str:
    """The panels, three across, over a common legend; `numbers` are the marks of the horizontal axis."""
    colours = _colours(panels)
    parts = []
    for index, panel in enumerate(panels):
        across, down = index % _COLUMNS * _WIDTH, index // _COLUMNS * _HEIGHT
        parts.append(f'<g transform="translate({across},{down})">{_panel(panel, colours, numbers)}</g>')
    below = -(-len(panels) // _COLUMNS) * _HEIGHT
    for index, (label, colour) in enumerate(colours.items()):
        x, y = 20 + index % _COLUMNS * _WIDTH, below + 14 + index // _COLUMNS * 18
        parts.append(f'<line x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 28}" y="{y + 4}">{escape(label)}</text>')
    height = below + 16 + -(-len(colours) // _COLUMNS) * 18
    box = f'viewBox="0 0 {_COLUMNS * _WIDTH} {height}" font-family="sans-serif" font-size="11"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{background}{"".join(parts)}</svg>\n'


def _colours(panels: Sequence[Panel]) -> dict[str, str]:
    """Label -> colour, in order of appearance."""
    labels = {line.label: line.is_reference for panel in panels for line in panel.lines}
    coloured = [label for label, is_reference in labels.items() if not is_reference]
    return {
        label: "#000000" if is_reference else COLOURS[coloured.index(label) % len(COLOURS)]
        for label, is_reference in labels.items()
    }


def _panel(panel: Panel, colours: dict[str, str], numbers: Sequence[int]) -> str:
    high = max([value for line in panel.lines for _, value in line.points] + [1e-6]) * 1.05

    def x(number: int) -> float:
        return _LEFT + numbers.index(number) / max(len(numbers) - 1, 1) * (_RIGHT - _LEFT)

    def y(value: float) -> float:
        return _BOTTOM - value / high * (_BOTTOM - _TOP)

    parts = [f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>']
    step = round_step(high)
    for value in (index * step for index in range(int(high // step) + 1)):
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts += [f'<text x="{x(n):.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{n}</text>' for n in numbers]
    parts += [_line(line, colours[line.label], x, y) for line in panel.lines]
    return "".join(parts)


def _line(line: Line, colour: str, x: Callable[[int], float], y: Callable[[float], float]) -> str:
    points = [(f"{x(number):.1f}", f"{y(value):.1f}") for number, value in line.points]
    dash = ' stroke-dasharray="4 3"' if line.is_reference else ""
    path = " ".join(",".join(point) for point in points)
    dots = "".join(f'<circle cx="{across}" cy="{up}" r="3" fill="{colour}"/>' for across, up in points)
    title = f"<title>{escape(line.label)}</title>"
    return f'<g>{title}<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>{dots}</g>'
