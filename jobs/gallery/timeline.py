"""Which processes worked when: a drawing of their intervals and the largest number at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.gallery.document import escape


@dataclass(frozen=True, kw_only=True)
class ProcessSpan:
    """One stretch of work of one process.

    Attributes:
        name: What it did, as shown ("train alice/cat").
        role: What kind of work ("trainer", "recorder", "solver", ...); one colour a role.
        pid: Process id; spans of one process share a lane.
        started: Seconds, any clock shared by all spans (time.time()).
        ended: Seconds on the same clock.
    """

    name: str
    role: str
    pid: int
    started: float
    ended: float

    def __post_init__(self) -> None:
        if not self.ended >= self.started:
            raise ValueError(f"{self.name}: ended {self.ended} is before started {self.started}")


def most_at_once(spans: Iterable[ProcessSpan], role: str | None = None) -> int:
    """Largest number of different processes at work at one moment (of one role, if named).

    Touching ends do not overlap: a process that starts when another ends adds nothing.
    """
    events: list[tuple[float, int, int]] = []
    for span in spans:
        if (role is None or span.role == role) and span.ended > span.started:
            events += [(span.started, 1, span.pid), (span.ended, 0, span.pid)]
    busy: dict[int, int] = {}
    most = 0
    for _, opens, pid in sorted(events):
        busy[pid] = busy.get(pid, 0) + (1 if opens else -1)
        most = max(most, sum(1 for count in busy.values() if count > 0))
    return most


_LANE, _TOP, _LEFT, _WIDTH = 22, 30, 150, 1000


def timeline_svg(spans: Sequence[ProcessSpan]) -> str:
    """One lane a process, one bar a span, seconds since the first on the axis."""
    begin = min(span.started for span in spans)
    length = max(max(span.ended for span in spans) - begin, 1e-3)
    lanes = _lanes(spans)
    roles = list(dict.fromkeys(span.role for span in spans))
    height = _TOP + _LANE * len(lanes) + 46
    scale = (_WIDTH - _LEFT - 12) / length
    parts = [_axis(length, scale, len(lanes))]
    for index, lane in enumerate(lanes):
        y = _TOP + index * _LANE
        label = f"{lane[0].role} · pid {lane[0].pid}"
        parts.append(f'<text class="lane" x="{_LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        parts += [_bar(span, begin, scale, y, roles.index(span.role)) for span in lane]
    parts.append(_legend(roles, spans, height - 12))
    label = f"Timeline of {len(lanes)} processes over {length:.0f} seconds"
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {height}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _lanes(spans: Sequence[ProcessSpan]) -> list[list[ProcessSpan]]:
    """Spans by process, ordered by their first start."""
    lanes: dict[int, list[ProcessSpan]] = {}
    for span in sorted(spans, key=lambda span: (span.started, span.pid)):
        lanes.setdefault(span.pid, []).append(span)
    return list(lanes.values())


def _bar(span: ProcessSpan, begin: float, scale: float, y: float, color: int) -> str:
    x, width = _LEFT + (span.started - begin) * scale, max((span.ended - span.started) * scale, 1.5)
    title = f"{span.name}: {span.started - begin:.1f} s to {span.ended - begin:.1f} s, pid {span.pid}"
    text = ""
    if width > 6.2 * len(span.name) + 10:
        text = f'<text class="inbar" x="{x + 6:.1f}" y="{y + 14.5}">{escape(span.name)}</text>'
    return (
        f'<g><title>{escape(title)}</title><rect class="c{color % 8}" x="{x:.1f}" y="{y + 3}" '
        f'width="{width:.1f}" height="{_LANE - 6}" rx="2"/>{text}</g>'
    )


def _axis(length: float, scale: float, num_lanes: int) -> str:
    step = _round_step(length)
    bottom = _TOP + _LANE * num_lanes
    parts = []
    tick = 0.0
    while tick <= length:
        x = _LEFT + tick * scale
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_TOP - 12}" text-anchor="middle">{tick:g} s</text>')
        tick += step
    return "".join(parts)


def _legend(roles: Sequence[str], spans: Sequence[ProcessSpan], y: float) -> str:
    parts, x = [], float(_LEFT)
    for index, role in enumerate(roles):
        text = f"{role}: {most_at_once(spans, role)} at once"
        parts.append(f'<rect class="c{index % 8}" x="{x:.0f}" y="{y - 10}" width="11" height="11" rx="2"/>')
        parts.append(f'<text class="tick" x="{x + 16:.0f}" y="{y}">{escape(text)}</text>')
        x += 34 + 6.4 * len(text)
    return "".join(parts)


def _round_step(length: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that gives at most ten ticks."""
    step = 0.1
    while True:
        for factor in (1, 2, 5):
            if length / (step * factor) <= 10:
                return step * factor
        step *= 10
