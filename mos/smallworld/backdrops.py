"""The eight places of the small world, each a flat palette with one large feature."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from mos.smallworld.shapes import SUPERSAMPLING, ellipse_points
from mos.smallworld.world import PICTURE_SIZE

_SIDE = PICTURE_SIZE * SUPERSAMPLING


class _Brush:
    """Draws in picture pixels on the supersampled canvas."""

    def __init__(self, draw: ImageDraw.ImageDraw, shift: float, feature_x: float) -> None:
        self._draw = draw
        self.horizon = 40 + shift
        self.feature_x = feature_x

    def band(self, top: float, bottom: float, fill: str) -> None:
        self.box(0, top, PICTURE_SIZE, bottom, fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: str) -> None:
        self._draw.rectangle([v * SUPERSAMPLING for v in (x0, y0, x1, y1)], fill=fill)

    def disc(self, x: float, y: float, rx: float, ry: float, fill: str) -> None:
        points = ellipse_points(x * SUPERSAMPLING, y * SUPERSAMPLING, rx * SUPERSAMPLING, ry * SUPERSAMPLING)
        self._draw.polygon(points, fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: str) -> None:
        self._draw.polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points], fill=fill)


def draw_backdrop(name: str, shift: float, feature_x: float) -> Image.Image:
    """Paint a backdrop on a new supersampled canvas.

    Args:
        name: One of `mos.smallworld.world.BACKDROPS`.
        shift: Moves the horizon, in pixels.
        feature_x: Where the large feature (sun, planet, window) stands, in pixels.
    """
    canvas = Image.new("RGB", (_SIDE, _SIDE))
    _PAINTERS[name](_Brush(ImageDraw.Draw(canvas), shift, feature_x))
    return canvas


def sample_layout(rng: np.random.Generator) -> tuple[float, float]:
    """Draw a backdrop's shift of the horizon and place of its feature, in pixels."""
    side = 12.0 if rng.integers(2) else 52.0
    return float(rng.uniform(-2, 2)), side + float(rng.uniform(-2, 2))


def _beach(brush: _Brush) -> None:
    brush.band(0, 64, "#8fd0f8")
    brush.band(brush.horizon - 10, 64, "#2c74d0")
    brush.band(brush.horizon + 2, 64, "#f0d898")
    brush.disc(brush.feature_x, 10, 7, 7, "#fce04c")


def _forest(brush: _Brush) -> None:
    brush.band(0, 64, "#1c5834")
    for x in (4, 27, 50):
        brush.box(x + brush.feature_x / 10, 0, x + 9 + brush.feature_x / 10, 64, "#5c3c20")
    brush.band(brush.horizon + 6, 64, "#2c7030")


def _city(brush: _Brush) -> None:
    brush.band(0, 64, "#1c1c50")
    for x, top in ((1, 16), (23, 26), (45, 10)):
        brush.box(x, top, x + 18, 64, "#50506c")
        brush.box(x + 3, top + 4, x + 7, top + 9, "#fce880")
        brush.box(x + 11, top + 4, x + 15, top + 9, "#fce880")
    brush.band(brush.horizon + 10, 64, "#343440")


def _snow(brush: _Brush) -> None:
    brush.band(0, 64, "#b4c4d8")
    x = brush.feature_x
    brush.polygon([(x - 26, 44), (x, 6), (x + 26, 44)], "#7c90b0")
    brush.polygon([(x - 9, 19), (x, 6), (x + 9, 19)], "#ffffff")
    brush.band(brush.horizon, 64, "#f8fafe")


def _space(brush: _Brush) -> None:
    brush.band(0, 64, "#0c0818")
    for x, y in ((7, 30), (20, 6), (33, 20), (44, 5), (58, 34), (12, 52), (36, 58), (54, 54)):
        brush.disc(x, y, 1.2, 1.2, "#f0f0f0")
    brush.disc(brush.feature_x, 13, 9, 9, "#d07850")
    brush.polygon(_ring(brush.feature_x, 13), "#f0c8a0")


def _ring(x: float, y: float) -> list[tuple[float, float]]:
    turn = math.radians(20)
    flat = ellipse_points(0, 0, 14, 1.8, 20)
    return [(x + a * math.cos(turn) - b * math.sin(turn), y - a * math.sin(turn) - b * math.cos(turn)) for a, b in flat]


def _meadow(brush: _Brush) -> None:
    brush.band(0, 64, "#68b0f8")
    for dx, dy, radius in ((-6, 1, 4), (0, 0, 6), (6, 1, 4)):
        brush.disc(brush.feature_x + dx, 10 + dy, radius, radius, "#ffffff")
    brush.band(brush.horizon - 2, 64, "#6cc048")


def _desert(brush: _Brush) -> None:
    brush.band(0, 64, "#fca850")
    brush.disc(brush.feature_x, 14, 9, 9, "#f05038")
    brush.disc(64 - brush.feature_x, brush.horizon + 14, 44, 20, "#d8943c")
    brush.band(brush.horizon + 4, 64, "#c88034")


def _room(brush: _Brush) -> None:
    brush.band(0, 64, "#e8d4b8")
    brush.box(brush.feature_x - 9, 3, brush.feature_x + 9, 23, "#ffffff")
    brush.box(brush.feature_x - 7, 5, brush.feature_x - 1, 21, "#90c8f0")
    brush.box(brush.feature_x + 1, 5, brush.feature_x + 7, 21, "#90c8f0")
    brush.band(brush.horizon + 4, 64, "#8c5434")


_PAINTERS: dict[str, Callable[[_Brush], None]] = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "snow": _snow,
    "space": _space,
    "meadow": _meadow,
    "desert": _desert,
    "room": _room,
}
