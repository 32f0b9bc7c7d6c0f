"""Whether the base can be taught: concepts of eight pictures, trained with the preset and read by the probe."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mos.base_model import BaseModel, load_base
from mos.concept import ConceptRef
from mos.sampling.config import SamplingConfig
from mos.sampling.sampler import sample
from mos.smallworld.captions import BACKDROP_PHRASES
from mos.smallworld.concepts import concept_identity, concept_pictures
from mos.smallworld.figures import Figure
from mos.smallworld.probe import Probe
from mos.smallworld.world import World
from mos.training.config import preset_for
from mos.training.data import concept_data
from mos.training.loop import train_concept


def measure_concepts(
    weights: Path,
    probe: Probe,
    world: World,
    *,
    seed: int,
    count: int,
    seeds_per_place: int,
    sampling: SamplingConfig,
) -> tuple[list[Figure], list[Image.Image]]:
    """Train held-out concepts alone and draw each on every backdrop.

    Args:
        weights: Folder of exported weights.
        probe: Reads the samples.
        world: Whose classes (one concept each, in order) and backdrops are used.
        seed: Of identities, pictures and samples.
        count: Concepts trained, at most one a class.
        seeds_per_place: Samples of each concept on each backdrop.
        sampling: Steps and guidance.

    Returns:
        Shares of samples in which the probe reads the concept's class, pattern and accessory and the prompt's
        backdrop; and the samples, a row of backdrops a concept and seed.
    """
    base = load_base(weights / "base")
    hits: list[tuple[bool, bool, bool, bool]] = []
    samples: list[Image.Image] = []
    for class_name in world.classes[:count]:
        pictures = _draw_concept(base, class_name, world, seed, seeds_per_place, sampling)
        identity = concept_identity(seed, class_name)
        places = [place for _ in range(seeds_per_place) for place in world.backdrops]
        for reading, place in zip(probe.predict(pictures), places, strict=True):
            hits.append(
                (
                    reading.class_name == class_name,
                    reading.pattern == identity.pattern,
                    reading.accessory == identity.accessory,
                    reading.backdrop == place,
                )
            )
        samples += pictures
    return _figures(hits), samples


def _draw_concept(
    base: BaseModel, class_name: str, world: World, seed: int, seeds_per_place: int, sampling: SamplingConfig
) -> list[Image.Image]:
    identity = concept_identity(seed, class_name)
    data = concept_data(concept_pictures(identity, seed, world=world), name=class_name, class_word=class_name)
    edlora = train_concept(base, data, preset_for(base.facts).with_options(seed=seed))
    ref = ConceptRef("owner", class_name)
    prompts = [f"photo of a {ref.word} {BACKDROP_PHRASES[place]}" for place in world.backdrops]
    seeds = [seed * 1000 + number for number in range(seeds_per_place * len(prompts))]
    return sample(base, edlora.adapter(ref), prompts * seeds_per_place, seeds=seeds, config=sampling)


def _figures(hits: Sequence[tuple[bool, bool, bool, bool]]) -> list[Figure]:
    shares = np.asarray(hits, dtype=float).mean(0).tolist()
    bars = (None, 0.85, 0.85, 0.90)
    names = ("class", "pattern", "accessory", "backdrop")
    return [
        Figure(name=f"concept: {name}", value=share, bar=bar, count=len(hits))
        for name, share, bar in zip(names, shares, bars, strict=True)
    ]
