"""Sample grids while training: the concept at LoRA scale 0, 0.7 and 1.0 with fixed seeds."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from mos.artifact import EDLoRA
from mos.base_model import BaseModel
from mos.concept import ConceptRef
from mos.sampling import SamplingConfig, sample
from mos.training.captions import TOKEN, with_words

SCALES = (0.0, 0.7, 1.0)
"""Scale 0 is the embedding alone: it must already show the identity."""

GRID_PROMPTS = (f"a photo of a {TOKEN}", f"a photo of a {TOKEN} on the beach", f"a {TOKEN} in the snow")

_MARGIN = 6
_LABEL = 14


def scale_grid(
    base: BaseModel,
    edlora: EDLoRA,
    *,
    prompts: Sequence[str] = GRID_PROMPTS,
    seeds: Sequence[int] = (0, 1),
    scales: Sequence[float] = SCALES,
    config: SamplingConfig | None = None,
) -> Image.Image:
    """Draw a concept at several LoRA scales.

    Args:
        base: the base it was trained on.
        edlora: finished, or a trainer's ``snapshot`` at some step.
        prompts: with ``<TOK>`` for the concept; each is drawn with every seed.
        seeds: the same in every row.
        scales: a row each, labelled.
        config: of sampling.

    Returns:
        One picture: a row a scale, a column a prompt and seed.
    """
    ref = ConceptRef("training", "concept")
    columns = [(with_words(prompt, ref.word), seed) for prompt in prompts for seed in seeds]
    rows = [
        sample(
            base,
            edlora.adapter(ref),
            [prompt for prompt, _ in columns],
            seeds=[seed for _, seed in columns],
            config=config or SamplingConfig(num_inference_steps=20, guidance_scale=4.0),
            scale=scale,
        )
        for scale in scales
    ]
    return _tiled(rows, [f"LoRA scale {scale:g}" for scale in scales])


def png_grid(base: BaseModel, edlora: EDLoRA) -> bytes:
    """Return :func:`scale_grid` with its defaults as the bytes of a PNG."""
    buffer = io.BytesIO()
    scale_grid(base, edlora).save(buffer, "PNG")
    return buffer.getvalue()


def _tiled(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str]) -> Image.Image:
    side = rows[0][0].width
    height = side + _LABEL + _MARGIN
    grid = Image.new("RGB", (len(rows[0]) * (side + _MARGIN) + _MARGIN, len(rows) * height + _MARGIN), "white")
    draw = ImageDraw.Draw(grid)
    for y, (row, label) in enumerate(zip(rows, labels, strict=True)):
        draw.text((_MARGIN, _MARGIN + y * height), label, fill="#333")
        for x, picture in enumerate(row):
            grid.paste(picture, (_MARGIN + x * (side + _MARGIN), _MARGIN + y * height + _LABEL))
    return grid
