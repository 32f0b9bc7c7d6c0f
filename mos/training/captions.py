"""Captions: templates by kind, shuffling, and the concept's words in place of ``<TOK>``."""

import re
from collections.abc import Mapping, Sequence

import torch

TOKEN = "<TOK>"  # noqa: S105
"""Stands for the concept in an owner's captions."""

_TOKEN = re.compile(r"<tok>", re.IGNORECASE)

_OBJECT = (
    "a photo of {}", "a picture of {}", "a close-up photo of {}", "a good photo of {}", "one photo of {}",
    "a clear photo of {}", "a photo that shows {}", "a snapshot of {}", "a bright photo of {}", "a view of {}",
)  # fmt: skip
_HUMAN = (
    "a photo of {}", "a portrait of {}", "a picture of {}", "a close-up of {}", "a photo of {}, facing the camera",
    "a good photo of {}", "a candid photo of {}", "a headshot of {}",
)  # fmt: skip
_STYLE = (
    "a painting in the style of {}", "a picture in the style of {}", "an artwork in the style of {}",
    "a drawing in the style of {}", "a rendering in the style of {}", "a work in the style of {}",
)  # fmt: skip

TEMPLATES: Mapping[str, Sequence[str]] = {
    "object": _OBJECT,
    "pet": _OBJECT,
    "scene": _OBJECT,
    "human": _HUMAN,
    "style": _STYLE,
}
"""Captions for pictures without one, by the kind of concept; ``{}`` is where the concept goes."""


def names_concept(caption: str) -> bool:
    """Say whether a caption says where the concept is."""
    return bool(_TOKEN.search(caption))


def with_words(caption: str, word: str) -> str:
    """Put a word in place of every ``<TOK>``."""
    return _TOKEN.sub(lambda _: word, caption)


def draw_caption(caption: str, kind: str, *, shuffle: bool, templates: bool, generator: torch.Generator) -> str:
    """Choose one form of a caption.

    Args:
        caption: an owner's caption, or ``<TOK>`` alone, which goes into a template for the kind.
        kind: the kind of concept.
        shuffle: put the parts between commas in random order, the first one kept.
        templates: whether a caption of ``<TOK>`` alone is put into a template.
        generator: source of randomness; drawn from only where there is a choice.
    """
    if templates and caption.strip() == TOKEN:
        forms = TEMPLATES[kind]
        return forms[_draw(len(forms), generator)].format(TOKEN)
    parts = [part.strip() for part in caption.split(",")]
    if not shuffle or len(parts) < 3:
        return caption
    order = torch.randperm(len(parts) - 1, generator=generator).tolist()
    return ", ".join([parts[0], *(parts[1 + index] for index in order)])


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
