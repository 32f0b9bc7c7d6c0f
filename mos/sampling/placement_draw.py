"""The ways of drawing that the placement measurement compares, and the pictures they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mos.base_model import BaseModel
from mos.sampling.config import BleedingGuard, SamplingConfig
from mos.sampling.placement import crop
from mos.sampling.placement_cast import PLACES, Canvas, Member, Stage, square_canvas, wide_canvas
from mos.sampling.region import Region
from mos.sampling.sampler import sample

if TYPE_CHECKING:
    from typing import Literal

BATCH = 10
"""Seeds drawn together, on one backdrop; the first of each batch is shown in the grids."""
COLUMN = 48
"""Width of everyone's column on the wide canvas, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of drawing everyone.

    Attributes:
        name: As the table calls it.
        model: Whose weights: a fusion, everyone's own unfused adapter, or none at all (renders).
        way: Everyone in a picture of their own, one prompt naming everyone, or a region for everyone.
        is_wide: On the wide canvas, everyone in a column; otherwise on one of the base's own size.
        guard: Against bleeding.
    """

    name: str
    model: Literal["renders", "average", "gradient", "unfused"]
    way: Literal["alone", "prompt", "regions"] = "regions"
    is_wide: bool = True
    guard: BleedingGuard = "none"


METHODS = (
    Method(name="renders, each alone (ceiling)", model="renders", way="alone"),
    Method(name="unfused, each drawn alone (ceiling)", model="unfused", way="alone"),
    Method(name="gradient fusion, plain prompt", model="gradient", way="prompt", is_wide=False),
    Method(name="gradient fusion, regions, no guard", model="gradient"),
    Method(name="average, regions, windows", model="average", guard="windows"),
    Method(name="gradient fusion, regions, windows", model="gradient", guard="windows"),
    Method(name="unfused, regions, windows", model="unfused", guard="windows"),
)
OTHERS = (
    Method(name="gradient fusion, each drawn alone", model="gradient", way="alone"),
    Method(name="gradient fusion, regions in a picture of the base's size", model="gradient", is_wide=False),
    Method(name="gradient fusion, regions, self-attention", model="gradient", guard="self-attention"),
    Method(name="gradient fusion, regions, blend", model="gradient", guard="blend"),
    Method(name="average, regions, no guard", model="average"),
    Method(name="unfused, regions, no guard", model="unfused"),
)
"""The other guards, and what they are without, measured when asked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A picture, and the part of it that belongs to each member."""

    picture: Image.Image
    parts: Sequence[Image.Image]


def draw(base: BaseModel, stage: Stage, method: Method, seeds: Sequence[int], config: SamplingConfig) -> list[Drawn]:
    """Draw one scene a seed; all of them on the backdrop of the first."""
    from mos.evaluation.drawing import supports_bfloat16
    from mos.smallworld.captions import BACKDROP_PHRASES

    if method.model == "renders":
        columns = [[render(one, seed, number) for seed in seeds] for number, one in enumerate(stage.members)]
        return _in_columns(columns)
    place = BACKDROP_PHRASES[_backdrop(seeds[0])]
    with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=supports_bfloat16()):
        if method.way == "alone":
            return _each_alone(base, stage, method, seeds, config, place)
        canvas = canvas_of(method, len(stage.members), base.facts.resolution)
        is_plain = method.way == "prompt"
        words = [member.ref.word if is_plain else member.identity.class_name for member in stage.members]
        pictures = sample(
            base,
            stage.fused.get(method.model),
            [scene_prompt(words, place)] * len(seeds),
            regions=() if is_plain else regions_of(stage, canvas, place, is_unfused=method.model == "unfused"),
            seeds=seeds,
            config=replace(config, bleeding_guard=method.guard, width=canvas.width, height=canvas.height),
        )
    return [Drawn(picture=picture, parts=[crop(picture, box) for box in canvas.boxes]) for picture in pictures]


def canvas_of(method: Method, count: int, side: int) -> Canvas:
    """Where a method draws this many concepts."""
    return wide_canvas(count, side, COLUMN) if method.is_wide else square_canvas(count, side)


def regions_of(stage: Stage, canvas: Canvas, place: str, *, is_unfused: bool) -> list[Region]:
    """Each member in its box, with its own adapter if it is not fused in."""
    return [
        Region(
            prompt=f"a {member.ref.word} {place}",
            box=box,
            adapter=member.edlora.adapter(member.ref) if is_unfused else None,
        )
        for member, box in zip(stage.members, canvas.boxes, strict=True)
    ]


def scene_prompt(words: Sequence[str], place: str) -> str:
    """Name everyone with their place, as the small world's captions do."""
    placed = [
        f"a {word} {'on' if where in ('left', 'right') else 'at'} the {where}"
        for word, where in zip(words, PLACES[len(words)], strict=True)
    ]
    return f"{' and '.join(placed)} {place}"


def _each_alone(
    base: BaseModel, stage: Stage, method: Method, seeds: Sequence[int], config: SamplingConfig, place: str
) -> list[Drawn]:
    """Everyone in a picture of the base's own size: what can be had at best."""
    columns = []
    for member in stage.members:
        adapter = member.edlora.adapter(member.ref) if method.model == "unfused" else stage.fused[method.model]
        prompts = [f"a {member.ref.word} {place}"] * len(seeds)
        columns.append(sample(base, adapter, prompts, seeds=seeds, config=config))
    return _in_columns(columns)


def render(member: Member, seed: int, number: int) -> Image.Image:
    """What a perfect model would draw: the identity itself, alone on the seed's backdrop."""
    from mos.smallworld.render import compose_scene, render_scene

    rng = np.random.default_rng([20281, seed, number])
    return render_scene(compose_scene(rng, [member.identity], _backdrop(seed)), with_masks=False).image


def _in_columns(columns: Sequence[Sequence[Image.Image]]) -> list[Drawn]:
    return [Drawn(picture=_side_by_side(parts), parts=parts) for parts in zip(*columns, strict=True)]


def _side_by_side(parts: Sequence[Image.Image]) -> Image.Image:
    joined = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)))
    x = 0
    for part in parts:
        joined.paste(part, (x, 0))
        x += part.width
    return joined


def _backdrop(seed: int) -> str:
    from mos.smallworld.world import BACKDROPS

    return BACKDROPS[seed // BATCH % len(BACKDROPS)]
