"""What exists in the small world: classes, colours, patterns, accessories, backdrops, identities."""

import colorsys
import hashlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mos.errors import BadInputError

PICTURE_SIZE = 64
"""Side of every picture, in pixels."""

CLASSES = ("robot", "cat", "fish", "flower", "house", "car", "mug", "tree")
BACKDROPS = ("beach", "forest", "city", "snow", "space", "meadow", "desert", "room")
PATTERNS = ("plain", "striped", "dotted", "checked")
ACCESSORIES = ("none", "hat", "bow", "star")
HUES = {
    "red": 0.0,
    "orange": 28.0,
    "yellow": 54.0,
    "green": 120.0,
    "cyan": 180.0,
    "blue": 225.0,
    "purple": 275.0,
    "pink": 322.0,
}
"""Centres of the named hues in degrees; an identity's hue lies within `HUE_JITTER` of one."""

HUE_JITTER = 6.0
MIN_HUE_GAP = 50.0
NUM_PROPORTIONS = 3
HELD_OUT_SHARE = 16
"""One cell of identities in this many is kept from pretraining."""

_HELD_OUT_SALT = "mos small world held out 1"


@dataclass(frozen=True, kw_only=True)
class Colour:
    """A named hue with its own exact tint: hue in degrees, saturation and value in [0, 1]."""

    name: str
    hue: float
    saturation: float = 0.9
    value: float = 0.92

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as three bytes."""
        red, green, blue = colorsys.hsv_to_rgb(self.hue % 360 / 360, self.saturation, self.value)
        return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One individual: what stays the same in every picture of it.

    Attributes:
        class_name: One of `CLASSES`.
        colours: Main colour, then the second one (pattern, accessory and trim).
        pattern: One of `PATTERNS`.
        accessory: One of `ACCESSORIES`.
        proportions: Three numbers in [-1, 1]: width, height of parts, size of parts.
    """

    class_name: str
    colours: tuple[Colour, Colour]
    pattern: str
    accessory: str
    proportions: tuple[float, ...]

    @property
    def cell(self) -> tuple[str, str, str, str, str]:
        """The named attributes, without tint and proportions: identities of one cell are neighbours."""
        main, second = self.colours
        return (self.class_name, main.name, second.name, self.pattern, self.accessory)


@dataclass(frozen=True, kw_only=True)
class World:
    """Which of the things that can be drawn exist, and how large subjects are.

    Attributes:
        classes: Subset of `CLASSES`.
        backdrops: Subset of `BACKDROPS`.
        patterns: Subset of `PATTERNS`.
        accessories: Subset of `ACCESSORIES`.
        single_size: Smallest and largest side of a subject alone in its picture, in pixels.
        group_size: The same where two to four subjects share the picture.
        max_tilt: Largest tilt either way, in degrees.
        hues: Subset of `HUES`, by name.
    """

    classes: tuple[str, ...] = CLASSES
    backdrops: tuple[str, ...] = BACKDROPS
    patterns: tuple[str, ...] = PATTERNS
    accessories: tuple[str, ...] = ACCESSORIES
    single_size: tuple[float, float] = (34.0, 48.0)
    group_size: tuple[float, float] = (27.0, 31.0)
    max_tilt: float = 6.0
    hues: tuple[str, ...] = field(default_factory=lambda: tuple(HUES))

    def __post_init__(self) -> None:
        problems = [
            f"{name} {sorted(set(chosen) - set(known))} cannot be drawn; known: {', '.join(known)}"
            for name, chosen, known in (
                ("classes", self.classes, CLASSES),
                ("backdrops", self.backdrops, BACKDROPS),
                ("patterns", self.patterns, PATTERNS),
                ("accessories", self.accessories, ACCESSORIES),
                ("hues", self.hues, tuple(HUES)),
            )
            if not chosen or set(chosen) - set(known)
        ]
        for name, (low, high) in (("single_size", self.single_size), ("group_size", self.group_size)):
            if not 12 <= low <= high <= PICTURE_SIZE:
                problems.append(f"{name} is {low}..{high}; expected 12 <= low <= high <= {PICTURE_SIZE}")
        if not 0 <= self.max_tilt <= 45:
            problems.append(f"max_tilt is {self.max_tilt}; expected 0..45 degrees")
        if problems:
            raise BadInputError("world: " + "; ".join(problems))


def load_world(path: Path | None) -> World:
    """Read a world file (TOML, the keys of `World`); no path is the world of the shipped weights.

    Raises:
        BadInputError: If the file cannot be read, has an unknown key or a value out of range.
    """
    if path is None:
        return World()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInputError(f"{path}: not a readable world file: {error}") from error
    unknown = sorted(set(values) - set(World.__dataclass_fields__))
    if unknown:
        known = ", ".join(World.__dataclass_fields__)
        raise BadInputError(f"{path}: unknown keys {unknown}; a world file has {known}")
    try:
        options: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return World(**options)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{path}: {error}; see docs/smallworld.md for the keys") from error


def hue_distance(first: float, second: float) -> float:
    """Distance of two hues on the colour circle, in degrees, 0 to 180."""
    gap = abs(first - second) % 360
    return min(gap, 360 - gap)


def sample_identity(
    rng: np.random.Generator, *, world: World | None = None, class_name: str | None = None, held_out: bool = False
) -> Identity:
    """Draw an identity; those of held-out cells only when asked, and then only those."""
    world = world or World()
    while True:
        identity = _any_identity(rng, world, class_name)
        if is_held_out(identity) == held_out:
            return identity


def is_held_out(identity: Identity) -> bool:
    """Whether pretraining never sees this identity nor its neighbours (its whole cell, any tint and proportions)."""
    text = "/".join((_HELD_OUT_SALT, *identity.cell))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT_SHARE == 0


def concept_identity(seed: int, class_name: str) -> Identity:
    """Return the held-out identity of this class that belongs to the seed.

    It has a pattern and an accessory, so that there is an identity to lose.
    """
    _check_class(class_name)
    rng = np.random.default_rng([20260, seed, CLASSES.index(class_name)])
    while True:
        identity = sample_identity(rng, class_name=class_name, held_out=True)
        if identity.pattern != "plain" and identity.accessory != "none":
            return identity


def neighbour_identity(identity: Identity, seed: int = 0) -> Identity:
    """Another held-out identity of the same class that shares neither pattern, accessory nor main hue: the floor."""
    rng = np.random.default_rng([20261, seed, CLASSES.index(identity.class_name)])
    while True:
        other = sample_identity(rng, class_name=identity.class_name, held_out=True)
        differs = other.pattern != identity.pattern and other.accessory != identity.accessory
        if differs and other.colours[0].name != identity.colours[0].name:
            return other


def _any_identity(rng: np.random.Generator, world: World, class_name: str | None) -> Identity:
    main = _sample_colour(rng, world.hues)
    second = _sample_colour(rng, world.hues)
    while hue_distance(main.hue, second.hue) < MIN_HUE_GAP:
        second = _sample_colour(rng, world.hues)
    return Identity(
        class_name=class_name or _pick(rng, world.classes),
        colours=(main, second),
        pattern=_pick(rng, world.patterns),
        accessory=_pick(rng, world.accessories),
        proportions=tuple(round(float(value), 3) for value in rng.uniform(-1, 1, NUM_PROPORTIONS)),
    )


def _sample_colour(rng: np.random.Generator, hues: tuple[str, ...]) -> Colour:
    name = _pick(rng, hues)
    hue = (HUES[name] + float(rng.uniform(-HUE_JITTER, HUE_JITTER))) % 360
    return Colour(name=name, hue=hue, saturation=float(rng.uniform(0.82, 0.96)), value=float(rng.uniform(0.86, 0.98)))


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _check_class(class_name: str) -> None:
    if class_name not in CLASSES:
        raise BadInputError(f"class {class_name!r} is not in the small world; known: {', '.join(CLASSES)}")
