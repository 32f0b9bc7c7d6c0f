"""One sheet of a base's progress: the same prompts and noise drawn by its exports, a row each, the oldest on top.

python -m mos.smallworld.milestones BASE [BASE ...] --out times.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from mos.errors import MosError, NotFoundError
from mos.smallworld.figures import draw_samples
from mos.smallworld.report import load_pipeline, sheet

PROMPTS = (
    "a red and blue striped cat with a hat on the beach",
    "a plain blue and yellow robot in the city",
    "a green and purple dotted fish with a bow in the forest",
    "a purple and yellow checked house with a star in the desert",
    "a yellow and red striped mug in the room",
    "a plain pink and green flower with a hat in the meadow",
    "a cyan and red dotted car with a star in the snow",
    "an orange and blue checked tree with a bow in space",
    "a photo of a cat",
    "photo of a robot on the beach",
    "a red cat on the left and a blue robot on the right on the beach",
    "a green house on the left and a yellow car on the right in the snow",
)
SEED = 20
NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 4.0


def draw_milestones(bases: Sequence[Path]) -> Image.Image:
    """Draw PROMPTS with each base, in the order given; a row a base.

    Raises:
        NotFoundError: If a folder is no base.
    """
    for base in bases:
        if not (base / "model_index.json").is_file():
            raise NotFoundError(f"{base}: no model_index.json there; name a base in diffusers layout")
    pictures: list[Image.Image] = []
    for base in bases:
        pipeline = load_pipeline(base)
        with torch.no_grad():
            pictures += draw_samples(
                pipeline,
                PROMPTS,
                seed=SEED,
                num_inference_steps=NUM_INFERENCE_STEPS,
                guidance_scale=GUIDANCE_SCALE,
            )
    return sheet(pictures, columns=len(PROMPTS), scale=1)


def main(arguments: list[str] | None = None) -> int:
    """Draw the sheet and print its path."""
    parser = argparse.ArgumentParser(prog="python -m mos.smallworld.milestones", description=__doc__)
    parser.add_argument("bases", nargs="+", type=Path, metavar="BASE")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    options = parser.parse_args(arguments)
    try:
        draw_milestones(options.bases).quantize(96).save(options.out, optimize=True)
    except MosError as error:
        print(f"milestones: {error}", file=sys.stderr)
        return error.exit_code
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
