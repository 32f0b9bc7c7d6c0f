"""A concept of the small world: eight pictures of one held-out individual, whose captions give nothing away."""

import numpy as np
from PIL import Image

from mos.smallworld.captions import BACKDROP_PHRASES, CONCEPT_TEMPLATES
from mos.smallworld.render import compose_scene, render_scene
from mos.smallworld.world import BACKDROPS, Identity, World, concept_identity, neighbour_identity

CONCEPT_SIZES = ((28.0, 31.0), (31.0, 36.0), (36.0, 42.0), (42.0, 47.0))
"""Ranges of sizes in pixels that a concept's pictures go through in turn, so that regions of any size work."""

__all__ = ["CONCEPT_SIZES", "concept_identity", "concept_pictures", "neighbour_identity"]


def concept_pictures(
    identity: Identity, seed: int, count: int = 8, *, world: World | None = None
) -> list[tuple[Image.Image, str, Image.Image]]:
    """Show an individual on varied backdrops at varied positions and sizes.

    Returns:
        `count` triples of picture (RGB), caption with `<TOK>` in place of the words, and mask ("L", 255 = subject).
        No caption names colour, pattern or accessory.
    """
    world = world or World()
    rng = np.random.default_rng([20262, seed])
    backdrops = [BACKDROPS[index] for index in rng.permutation(len(BACKDROPS))]
    pictures = []
    for index in range(count):
        backdrop = backdrops[index % len(backdrops)]
        sizes = CONCEPT_SIZES[index % len(CONCEPT_SIZES)]
        rendered = render_scene(compose_scene(rng, [identity], backdrop, world=world, single_size=sizes))
        template = CONCEPT_TEMPLATES[index % len(CONCEPT_TEMPLATES)]
        caption = template.format(place=BACKDROP_PHRASES[backdrop])
        pictures.append((rendered.image, caption, rendered.masks[0]))
    return pictures
