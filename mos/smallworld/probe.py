"""The attribute probe: reads class, pattern, accessory, backdrop and hues off a picture or a crop of one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from mos.smallworld.world import ACCESSORIES, BACKDROPS, CLASSES, PATTERNS

HEADS: dict[str, tuple[str, ...]] = {
    "class_name": CLASSES,
    "pattern": PATTERNS,
    "accessory": ACCESSORIES,
    "backdrop": BACKDROPS,
}
"""What each head of the probe chooses among."""

INPUT_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class ProbeReading:
    """What the probe sees.

    Attributes:
        class_name: Most likely class.
        pattern: Most likely pattern.
        accessory: Most likely accessory.
        backdrop: Most likely backdrop; unreliable on tight crops, which show little of it.
        hues: Main and second hue, in degrees.
        probabilities: For each head its choices' probabilities.
    """

    class_name: str
    pattern: str
    accessory: str
    backdrop: str
    hues: tuple[float, float]
    probabilities: dict[str, dict[str, float]]


class Probe(nn.Module):
    """A small convolutional network with one head for each attribute and two for the hues."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, 32, stride=2, kernel=5),
            _block(32, 64),
            nn.MaxPool2d(2),
            _block(64, 96),
            nn.MaxPool2d(2),
            _block(96, 160),
            _block(160, 160),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(320, len(choices)) for name, choices in HEADS.items()})
        self.hues = nn.Linear(320, 4)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of each head [n, choices], and `hues` [n, 2, 2]: cosine and sine of main and second hue.

        Args:
            images: [n, 3, 64, 64] in [-1, 1].
        """
        features = self.body(images)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        readings = {name: head(pooled) for name, head in self.heads.items()}
        readings["hues"] = self.hues(pooled).view(-1, 2, 2)
        return readings

    @torch.no_grad()
    def predict(self, images: Sequence[Image.Image]) -> list[ProbeReading]:
        """Read pictures of any size: whole ones, or crops that show one subject."""
        self.eval()
        readings: list[ProbeReading] = []
        for first in range(0, len(images), 128):
            batch = torch.stack([prepare(image) for image in images[first : first + 128]])
            output = {name: value.float() for name, value in self(batch).items()}
            readings.extend(_reading(output, index) for index in range(len(batch)))
        return readings


def prepare(image: Image.Image) -> torch.Tensor:
    """A picture as the probe wants it: [3, 64, 64] in [-1, 1], proportions kept, its edges repeated."""
    picture = image.convert("RGB")
    scale = INPUT_SIZE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    spare_rows, spare_columns = INPUT_SIZE - height, INPUT_SIZE - width
    if spare_rows or spare_columns:
        rows = (spare_rows // 2, spare_rows - spare_rows // 2)
        columns = (spare_columns // 2, spare_columns - spare_columns // 2)
        pixels = np.pad(pixels, (rows, columns, (0, 0)), mode="edge")
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1


def _reading(output: dict[str, torch.Tensor], index: int) -> ProbeReading:
    probabilities = {}
    for name, choices in HEADS.items():
        values = output[name][index].softmax(0).tolist()
        probabilities[name] = dict(zip(choices, values, strict=True))
    best = {name: max(values, key=lambda choice: values[choice]) for name, values in probabilities.items()}
    main, second = (math.degrees(math.atan2(float(y), float(x))) % 360 for x, y in output["hues"][index])
    return ProbeReading(
        class_name=best["class_name"],
        pattern=best["pattern"],
        accessory=best["accessory"],
        backdrop=best["backdrop"],
        hues=(main, second),
        probabilities=probabilities,
    )


def _block(inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
