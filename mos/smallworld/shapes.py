"""How each class and accessory is drawn, in its own frame: x right, y down, both in [-0.5, 0.5]."""

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from mos.smallworld.world import Identity

SUPERSAMPLING = 4
OUTLINE = (24, 20, 32)
OUTLINE_PX = 1.7
WHITE = (250, 250, 250)
LEAF = (46, 150, 60)
GLASS = (190, 232, 250)
DARK = (70, 46, 40)

Point = tuple[float, float]
Fill = tuple[int, int, int]


class Pen:
    """Draws polygons given in a subject's own frame onto a supersampled picture and, if given, its mask."""

    def __init__(
        self,
        canvas: Image.Image,
        mask: Image.Image | None,
        *,
        centre: Point,
        size: float,
        tilt: float = 0.0,
        flip: bool = False,
    ) -> None:
        """Place the frame: centre and size in picture pixels, tilt in degrees, flip mirrors left and right."""
        self._canvas = canvas
        self._draw = ImageDraw.Draw(canvas)
        self._mask_draw = None if mask is None else ImageDraw.Draw(mask)
        self._centre = (centre[0] * SUPERSAMPLING, centre[1] * SUPERSAMPLING)
        scale = size * SUPERSAMPLING
        angle = math.radians(tilt)
        mirror = -1.0 if flip else 1.0
        self._xx, self._xy = scale * math.cos(angle) * mirror, -scale * math.sin(angle)
        self._yx, self._yy = scale * math.sin(angle) * mirror, scale * math.cos(angle)
        self._outline = max(4, round(OUTLINE_PX * SUPERSAMPLING))

    def polygon(self, points: Sequence[Point], fill: Fill) -> None:
        """Fill a closed shape and outline it."""
        placed = self._place(points)
        self._draw.polygon(placed, fill=fill)
        self._edge(placed)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Fill) -> None:
        """Fill and outline an ellipse around (x, y)."""
        self.polygon(ellipse_points(x, y, rx, ry), fill)

    def disc(self, x: float, y: float, radius: float, fill: Fill) -> None:
        """Fill a circle without an outline, as in eyes."""
        self._draw.polygon(self._place(ellipse_points(x, y, radius, radius, 16)), fill=fill)

    def patterned(self, parts: Sequence[Sequence[Point]], identity: Identity) -> None:
        """Fill the union of the shapes with the identity's pattern, then outline each of them."""
        main, second = (colour.rgb for colour in identity.colours)
        placed = [self._place(points) for points in parts]
        if identity.pattern == "plain":
            for points in placed:
                self._draw.polygon(points, fill=main)
        else:
            stencil = Image.new("L", self._canvas.size)
            stencil_draw = ImageDraw.Draw(stencil)
            for points in placed:
                stencil_draw.polygon(points, fill=255)
            sheet = Image.new("RGB", self._canvas.size, main)
            sheet_draw = ImageDraw.Draw(sheet)
            for figure in PATTERN_FIGURES[identity.pattern]:
                sheet_draw.polygon(self._place(figure), fill=second)
            self._canvas.paste(sheet, mask=stencil)
        for points in placed:
            self._edge(points)

    def _edge(self, placed: list[Point]) -> None:
        closed = [*placed, placed[0], placed[1]]
        self._draw.line(closed, fill=OUTLINE, width=self._outline, joint="curve")
        if self._mask_draw is not None:
            self._mask_draw.polygon(placed, fill=255)
            self._mask_draw.line(closed, fill=255, width=self._outline, joint="curve")

    def _place(self, points: Sequence[Point]) -> list[Point]:
        cx, cy = self._centre
        return [(cx + self._xx * x + self._xy * y, cy + self._yx * x + self._yy * y) for x, y in points]


def ellipse_points(x: float, y: float, rx: float, ry: float, count: int = 28) -> list[Point]:
    """Corners of a polygon that passes for an ellipse."""
    step = 2 * math.pi / count
    return [(x + rx * math.cos(step * i), y + ry * math.sin(step * i)) for i in range(count)]


def box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    """Corners of an upright rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def draw_subject(pen: Pen, identity: Identity) -> None:
    """Draw an individual: its class's shape in its colours and pattern, then its accessory."""
    anchor = _CLASS_PAINTERS[identity.class_name](pen, identity)
    painter = _ACCESSORY_PAINTERS.get(identity.accessory)
    if painter is not None:
        painter(pen, anchor, identity.colours[1].rgb)


def _eyes(pen: Pen, x: float, y: float, gap: float, radius: float) -> None:
    for side in (-1, 1):
        pen.ellipse(x + side * gap, y, radius, radius, WHITE)
        pen.disc(x + side * gap, y, radius * 0.55, OUTLINE)


def _robot(pen: Pen, identity: Identity) -> Point:
    width, height, part = identity.proportions
    half, top = 0.25 + 0.03 * width, 0.02 + 0.02 * height
    second = identity.colours[1].rgb
    for side in (-1, 1):
        pen.polygon(box(side * 0.15 - 0.07, 0.34, side * 0.15 + 0.07, 0.5), second)
        inner, outer = half - 0.02, half + 0.13 + 0.02 * part
        pen.polygon(
            box(min(side * inner, side * outer), top + 0.05, max(side * inner, side * outer), top + 0.26), second
        )
    pen.patterned([box(-half, top, half, 0.38)], identity)
    pen.polygon(box(-0.24, -0.33, 0.24, top), identity.colours[0].rgb)
    _eyes(pen, 0, (top - 0.33) / 2, 0.115, 0.085)
    return 0.0, -0.33


def _cat(pen: Pen, identity: Identity) -> Point:
    width, height, part = identity.proportions
    rx, ear = 0.31 + 0.03 * width, 0.13 + 0.02 * part
    second = identity.colours[1].rgb
    tail = [(0.2, 0.44), (0.36, 0.4), (0.4, 0.2), (0.33, 0.06), (0.43, 0.02), (0.5, 0.2), (0.45, 0.44), (0.28, 0.5)]
    pen.polygon(tail, second)
    for side in (-1, 1):
        ear_points = [(side * (rx - 0.01), -0.02), (side * (rx - 0.02), -0.3 - ear * 0.6), (side * 0.07, -0.24)]
        pen.polygon(ear_points, identity.colours[0].rgb)
    pen.patterned([ellipse_points(0, 0.29, 0.25 + 0.02 * height, 0.21)], identity)
    pen.patterned([ellipse_points(0, -0.04, rx, 0.25)], identity)
    _eyes(pen, 0, -0.06, 0.135, 0.085)
    pen.disc(0, 0.07, 0.035, OUTLINE)
    return 0.0, -0.27


def _fish(pen: Pen, identity: Identity) -> Point:
    width, height, part = identity.proportions
    rx, ry = 0.35 + 0.02 * width, 0.235 + 0.025 * height
    tail = 0.2 + 0.03 * part
    second = identity.colours[1].rgb
    pen.polygon([(0.24, 0.08), (0.5, 0.08 - tail), (0.43, 0.08), (0.5, 0.08 + tail)], second)
    pen.polygon([(-0.08, 0.24), (0.14, 0.24), (0.16, 0.44), (0.02, 0.42)], second)
    pen.patterned([ellipse_points(-0.12, 0.08, rx, ry)], identity)
    pen.ellipse(-0.29, 0.02, 0.085, 0.085, WHITE)
    pen.disc(-0.31, 0.02, 0.048, OUTLINE)
    return -0.1, 0.09 - ry


def _flower(pen: Pen, identity: Identity) -> Point:
    width, height, part = identity.proportions
    reach, petal = 0.2 + 0.015 * width, 0.135 + 0.015 * part
    pen.polygon(box(-0.035, 0.1, 0.035, 0.5), LEAF)
    leaf = 0.1 + 0.02 * height
    for side in (-1, 1):
        pen.polygon([(0, 0.47), (side * 0.14, 0.47 - leaf * 1.5), (side * 0.27, 0.4 - leaf), (side * 0.2, 0.46)], LEAF)
    turns = [2 * math.pi * (i + 0.5) / 6 for i in range(6)]
    petals = [
        ellipse_points(reach * math.sin(turn), -0.06 + reach * math.cos(turn), petal, petal, 18) for turn in turns
    ]
    pen.patterned(petals, identity)
    pen.ellipse(0, -0.06, 0.125, 0.125, identity.colours[1].rgb)
    return 0.0, -0.33


def _house(pen: Pen, identity: Identity) -> Point:
    width, height, part = identity.proportions
    half, eaves = 0.32 + 0.02 * width, 0.02 + 0.02 * height
    pen.patterned([box(-half, eaves, half, 0.48)], identity)
    pen.polygon([(-half - 0.1, eaves + 0.02), (0, -0.34), (half + 0.1, eaves + 0.02)], identity.colours[1].rgb)
    pen.polygon(box(-0.085 - 0.015 * part, 0.2, 0.085 + 0.015 * part, 0.48), DARK)
    return 0.0, -0.29


def _car(pen: Pen, identity: Identity) -> Point:
    width, height, part = identity.proportions
    roof, nose = -0.24 - 0.02 * height, 0.2 + 0.03 * width
    cabin = [(-0.32, 0.06), (-0.2, roof), (0.14, roof), (nose + 0.05, 0.06)]
    pen.polygon(cabin, GLASS)
    pen.polygon(box(-0.055, roof, -0.005, 0.06), identity.colours[0].rgb)
    body = [(-0.5, 0.06), (nose + 0.1, 0.04), (0.48, 0.12), (0.5, 0.36), (-0.5, 0.36)]
    pen.patterned([body], identity)
    radius = 0.135 + 0.01 * part
    for x in (-0.27, 0.27):
        pen.ellipse(x, 0.36, radius, radius, OUTLINE)
        pen.disc(x, 0.36, radius * 0.55, identity.colours[1].rgb)
    return -0.03, roof


def _mug(pen: Pen, identity: Identity) -> Point:
    width, height, part = identity.proportions
    half, base = 0.28 + 0.02 * width, 0.44 + 0.02 * height
    reach = 0.19 + 0.02 * part
    second = identity.colours[1].rgb
    pen.ellipse(half + 0.01, 0.12, reach, 0.2, second)
    pen.ellipse(half + 0.01, 0.12, reach - 0.09, 0.1, DARK)
    left, right = -half - 0.03, half - 0.03
    wall = [(left, -0.2), (right, -0.2), (right - 0.01, base - 0.04), (right - 0.07, base)]
    pen.patterned([[*wall, (left + 0.07, base), (left + 0.01, base - 0.04)]], identity)
    pen.ellipse(-0.03, -0.2, half, 0.085, DARK)
    return -0.03, -0.24


def _tree(pen: Pen, identity: Identity) -> Point:
    width, height, part = identity.proportions
    reach, waist = 0.37 + 0.03 * width, 0.02 + 0.02 * height
    pen.polygon(box(-0.09 - 0.015 * part, 0.25, 0.09 + 0.015 * part, 0.5), identity.colours[1].rgb)
    pen.patterned([[(-reach, 0.32), (0, -0.18), (reach, 0.32)]], identity)
    pen.patterned([[(-reach * 0.78, waist), (0, -0.36), (reach * 0.78, waist)]], identity)
    return 0.0, -0.3


def _hat(pen: Pen, anchor: Point, fill: Fill) -> None:
    x, y = anchor
    pen.polygon(box(x - 0.125, y - 0.19, x + 0.125, y + 0.02), fill)
    pen.polygon(box(x - 0.23, y - 0.01, x + 0.23, y + 0.07), fill)


def _bow(pen: Pen, anchor: Point, fill: Fill) -> None:
    x, y = anchor
    for side in (-1, 1):
        pen.polygon([(x, y - 0.07), (x + side * 0.24, y - 0.2), (x + side * 0.24, y + 0.06)], fill)
    pen.ellipse(x, y - 0.07, 0.065, 0.065, fill)


def _star(pen: Pen, anchor: Point, fill: Fill) -> None:
    x, y = anchor[0], anchor[1] - 0.04
    radii = [0.19 if corner % 2 == 0 else 0.085 for corner in range(10)]
    turns = [math.pi * corner / 5 for corner in range(10)]
    points = [(x + r * math.sin(turn), y - r * math.cos(turn)) for r, turn in zip(radii, turns, strict=True)]
    pen.polygon(points, fill)


def _stripes() -> list[list[Point]]:
    return [box(-0.6 + 0.3 * i - 0.075, -0.7, -0.6 + 0.3 * i + 0.075, 0.7) for i in range(5)]


def _dots() -> list[list[Point]]:
    rows = range(-3, 4)
    return [
        ellipse_points(0.29 * column + 0.145 * (row % 2), 0.05 + 0.2 * row, 0.085, 0.085, 14)
        for row in rows
        for column in range(-3, 4)
    ]


def _checks() -> list[list[Point]]:
    cell = 0.18
    return [
        box(column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
        for row in range(-4, 4)
        for column in range(-4, 4)
        if (row + column) % 2
    ]


PATTERN_FIGURES: dict[str, list[list[Point]]] = {"striped": _stripes(), "dotted": _dots(), "checked": _checks()}
_CLASS_PAINTERS: dict[str, Callable[[Pen, Identity], Point]] = {
    "robot": _robot,
    "cat": _cat,
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "car": _car,
    "mug": _mug,
    "tree": _tree,
}
_ACCESSORY_PAINTERS: dict[str, Callable[[Pen, Point, Fill], None]] = {"hat": _hat, "bow": _bow, "star": _star}
