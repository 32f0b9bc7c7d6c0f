"""Small made-up concepts for training tests."""

import numpy as np
from PIL import Image

from mos.training import ConceptData, TrainingConfig, concept_data

CAPTIONS = ("a photo of <TOK> in snow", "a photo of <TOK> on the beach", "<TOK>", "a small <TOK>")

FAST = TrainingConfig(
    steps=50, batch_size=2, lr_embedding=1e-2, lr_text_encoder=1e-3, lr_unet=1e-3, views_per_picture=2
)


def made_up_concept(name: str, *, seed: int = 0, masked: bool = True, size: tuple[int, int] = (32, 32)) -> ConceptData:
    """Four pictures of noise around a square, with its mask."""
    rng = np.random.default_rng(seed)
    pictures = []
    for index in range(4):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        mask = np.zeros((size[1], size[0]), dtype=np.uint8)
        mask[4 : 4 + 6 * (index + 1), 2:20] = 255
        image = Image.fromarray(pixels)
        pictures.append((image, CAPTIONS[index], Image.fromarray(mask) if masked else None))
    return concept_data(pictures, name=name, class_word="cat", kind="pet")
