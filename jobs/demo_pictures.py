"""The demo's pictures: each concept alone, and all of them in one picture by regional sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mos.concept import ConceptRef

if TYPE_CHECKING:
    from PIL import Image

    from mos.base_model import BaseModel
    from mos.edlora.adapter import Adapter
    from mos.sampling import Region

PLACES = ("on the beach", "in the snow", "in the forest", "in the city")
ALONE_PROMPTS = tuple(f"a photo of a {{}} {place}" for place in PLACES)
COLUMN_SHARE = 0.75
"""Width of each concept's column in the picture of all, as a share of the base's own picture."""
SEED = 7
TILE, GAP = 64, 4
"""Pixels of the overview's small pictures and between pictures."""


@dataclass(frozen=True, kw_only=True)
class DemoPictures:
    """What was drawn.

    Attributes:
        prompts: Prompts of the pictures alone, `{}` for the word.
        alone: Concept -> pictures, one a prompt, drawn by the fused model.
        together: (global prompt, picture with all concepts).
        regions: One line a region.
    """

    prompts: Sequence[str]
    alone: dict[str, list["Image.Image"]]
    together: list[tuple[str, "Image.Image"]]
    regions: Sequence[str]


def draw_pictures(
    base: "BaseModel", refs: Sequence[ConceptRef], fused: "Adapter", num_steps: int, folder: Path
) -> DemoPictures:
    """Draw and save everything."""
    from mos.sampling import SamplingConfig, sample
    from mos.sampling.config import SMALL_WORLD_GUIDANCE

    config = SamplingConfig(num_inference_steps=num_steps, guidance_scale=SMALL_WORLD_GUIDANCE)
    seeds = [SEED + number for number in range(len(ALONE_PROMPTS))]
    alone = {
        str(ref): sample(base, fused, [prompt.format(ref.word) for prompt in ALONE_PROMPTS], seeds=seeds, config=config)
        for ref in refs
    }
    class_words = {concept.word: concept.class_word for concept in fused.vocabulary}
    prompts = together_prompts([class_words[ref.word] for ref in refs])
    together: list[Image.Image] = []
    width = round(base.facts.resolution * COLUMN_SHARE) * len(refs)
    side_by_side = replace(config, width=width, bleeding_guard="windows")
    for number, (prompt, place) in enumerate(zip(prompts, PLACES, strict=True)):
        seeds = [SEED + len(PLACES) + number]
        together += sample(base, fused, [prompt], regions=columns(refs, place), seeds=seeds, config=side_by_side)
    drawn = DemoPictures(
        prompts=ALONE_PROMPTS,
        alone=alone,
        together=list(zip(prompts, together, strict=True)),
        regions=[f"{region.prompt} in {region.place}" for region in columns(refs, PLACES[0])],
    )
    _save(drawn, folder)
    return drawn


def overview(trained_with: Sequence[Sequence["Image.Image"]], drawn: DemoPictures) -> "Image.Image":
    """One sheet: a row a concept, what its owner trained with and what the fused model draws; all together below.

    Args:
        trained_with: Pictures of each concept, in the order of `drawn.alone`.
        drawn: What was drawn.
    """
    from PIL import Image

    rows = list(zip(trained_with, drawn.alone.values(), strict=True))
    width = max(len(given) + len(made) for given, made in rows) * (TILE + GAP) + 3 * GAP
    half = (width - GAP) // 2
    first = drawn.together[0][1]
    height = round(half * first.height / first.width)
    top = len(rows) * (TILE + GAP)
    sheet = Image.new("RGB", (width, top + -(-len(drawn.together) // 2) * (height + GAP)), "white")
    for row, (given, made) in enumerate(rows):
        for column, picture in enumerate([*given, *made]):
            left = column * (TILE + GAP) + (4 * GAP if column >= len(given) else 0)
            sheet.paste(picture.convert("RGB").resize((TILE, TILE)), (left, row * (TILE + GAP)))
    for number, (_, picture) in enumerate(drawn.together):
        place = (number % 2 * (half + GAP), top + number // 2 * (height + GAP))
        sheet.paste(picture.resize((half, height), Image.Resampling.LANCZOS), place)
    return sheet


def columns(refs: Sequence[ConceptRef], place: str) -> list["Region"]:
    """A region for each concept, side by side, each with the backdrop in its prompt."""
    from mos.sampling import Region
    from mos.sampling.auto_layout import row_boxes

    return [
        Region(prompt=f"a {ref.word} {place}", box=box) for ref, box in zip(refs, row_boxes(len(refs)), strict=True)
    ]


def together_prompts(class_words: Sequence[str]) -> list[str]:
    """Global prompts that name each subject by its class word alone, and the backdrop."""
    subjects = " and ".join(f"a {word}" for word in class_words)
    return [f"{subjects} {place}" for place in PLACES]


def _save(drawn: DemoPictures, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for ref, pictures in drawn.alone.items():
        name = ref.partition("@")[0].replace("/", "-")
        for number, picture in enumerate(pictures):
            picture.save(folder / f"{name}-{number}.png")
    for number, (_, picture) in enumerate(drawn.together):
        picture.save(folder / f"together-{number}.png")
