"""A layout from a prompt by a simple rule: `<alice-robot> left of <bob-cat>, on a beach`.

`left of`, `right of`, `above` and `below` between two words place the one beside the other on a grid, words
no relation reaches go to its right, and the grid's cells become the boxes. Without any relation the words
fill the picture in rows as square as can be. What follows the last word (`on a beach`) is the setting and
goes into every region's prompt.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mos.concept import WORD_PATTERN
from mos.sampling.layout import Layout
from mos.sampling.region import Box, Region, RegionError

_WORD = re.compile(WORD_PATTERN.pattern)
_RELATIONS: tuple[tuple[re.Pattern[str], tuple[int, int]], ...] = (
    (re.compile(r"\bleft (?:of|from)\b"), (-1, 0)),
    (re.compile(r"\bright (?:of|from)\b"), (1, 0)),
    (re.compile(r"\b(?:above|over|on top of|behind)\b"), (0, -1)),
    (re.compile(r"\b(?:below|under|beneath|underneath|in front of)\b"), (0, 1)),
)
_ARTICLE_AT_END = re.compile(r"(?:\b(?:a|an|the)\s*)+$")

Cell = tuple[int, int]


@dataclass(frozen=True)
class _Link:
    """Two words that follow each other and where the first stands seen from the second, if said."""

    first: str
    second: str
    offset: Cell | None


def layout_from_prompt(prompt: str) -> Layout:
    """Place every concept word of a prompt in a box of its own.

    Args:
        prompt: At least two different concept words, each written as its one word.

    Returns:
        A layout whose global prompt is the prompt itself, one region a word, in the order of first mention.

    Raises:
        RegionError: If there are fewer than two words, or the relations contradict each other.
    """
    words = list(dict.fromkeys(match.group() for match in _WORD.finditer(prompt)))
    if len(words) < 2:
        raise RegionError(
            f"prompt {prompt!r}: an automatic layout needs two or more concept words, found {len(words)}; "
            "give the regions with --region"
        )
    said = [link for link in _links(prompt) if link.offset is not None]
    boxes = _grid_boxes(_place(words, said, prompt), words) if said else compact_boxes(len(words))
    setting = _setting(prompt)
    regions = tuple(Region(prompt=f"{word} {setting}".strip(), box=box) for word, box in zip(words, boxes, strict=True))
    return Layout(prompt=prompt, regions=regions)


def compact_boxes(count: int) -> tuple[Box, ...]:
    """Boxes that share a picture in rows as square as can be; a shorter last row is centred.

    Two stand side by side, three as two above one, four in the quarters.
    """
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns) if count else 0
    boxes = []
    for index in range(count):
        row, column = divmod(index, columns)
        in_row = min(columns, count - row * columns)
        left = (columns - in_row) / 2
        x0, x1 = ((left + column + step) / columns for step in (0, 1))
        boxes.append((x0, row / rows, x1, (row + 1) / rows))
    return tuple(boxes)


def row_boxes(count: int) -> tuple[Box, ...]:
    """Boxes side by side, each as high as the picture."""
    return tuple((index / count, 0.0, (index + 1) / count, 1.0) for index in range(count))


def _grid_boxes(cells: dict[str, Cell], words: list[str]) -> tuple[Box, ...]:
    left, top = (min(cell[axis] for cell in cells.values()) for axis in (0, 1))
    columns, rows = (max(cell[axis] for cell in cells.values()) + 1 - least for axis, least in ((0, left), (1, top)))
    return tuple(
        ((x - left) / columns, (y - top) / rows, (x - left + 1) / columns, (y - top + 1) / rows)
        for x, y in (cells[word] for word in words)
    )


def _links(prompt: str) -> Iterator[_Link]:
    mentions = list(_WORD.finditer(prompt))
    for one, other in itertools.pairwise(mentions):
        between = prompt[one.end() : other.start()].lower()
        found = [(match.start(), offset) for pattern, offset in _RELATIONS if (match := pattern.search(between))]
        yield _Link(one.group(), other.group(), max(found)[1] if found else None)


def _place(words: list[str], said: list[_Link], prompt: str) -> dict[str, Cell]:
    """Explicit relations first, as far as they reach; words nothing places go to the right of all others."""
    cells: dict[str, Cell] = {}
    for word in words:
        if word not in cells:
            cells[word] = (1 + max((x for x, _ in cells.values()), default=-1), 0)
            _spread(cells, said)
    for link in said:
        assert link.offset is not None
        (x1, y1), (x2, y2) = cells[link.first], cells[link.second]
        holds = (x1 - x2) * link.offset[0] > 0 or (y1 - y2) * link.offset[1] > 0
        if not holds:
            raise RegionError(
                f"prompt {prompt!r}: {link.first} and {link.second} cannot stand as it says; "
                "give the regions with --region"
            )
    return cells


def _spread(cells: dict[str, Cell], said: list[_Link]) -> None:
    """Place everything that a chain of relations ties to a placed word."""
    is_moving = True
    while is_moving:
        is_moving = False
        for link in said:
            assert link.offset is not None
            dx, dy = link.offset
            if link.second in cells and link.first not in cells:
                cells[link.first] = _free(cells, cells[link.second], (dx, dy))
                is_moving = True
            elif link.first in cells and link.second not in cells:
                cells[link.second] = _free(cells, cells[link.first], (-dx, -dy))
                is_moving = True


def _free(cells: dict[str, Cell], start: Cell, step: Cell) -> Cell:
    x, y = start[0] + step[0], start[1] + step[1]
    while (x, y) in cells.values():
        x, y = x + step[0], y + step[1]
    return x, y


def _setting(prompt: str) -> str:
    """What follows the last word, without the punctuation around it."""
    last = list(_WORD.finditer(prompt))[-1]
    return _ARTICLE_AT_END.sub("", prompt[last.end() :].strip(" ,.;")).strip()
