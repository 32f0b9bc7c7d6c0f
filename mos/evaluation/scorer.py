"""Any CLIPModel of transformers as a scorer: pictures and prompts to features, torchvision not needed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mos.errors import BadInputError, NotFoundError

if TYPE_CHECKING:
    import torch
    from PIL import Image

Features = NDArray[np.float32]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the scorer's input, as its `preprocessor_config.json` says.

    Attributes:
        size: Height and width in pixels after resizing, or the shortest edge alone.
        crop: Height and width of the centre crop, or None.
        mean: Mean a channel, of values in [0, 1].
        std: Deviation a channel.
        resample: PIL's number of the filter; 3 is bicubic.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int] | None
    mean: tuple[float, ...] = _CLIP_MEAN
    std: tuple[float, ...] = _CLIP_STD
    resample: int = 3

    def __call__(self, image: "Image.Image") -> Features:
        """One picture as [3, height, width]."""
        from PIL import Image

        resized = self._resized(image.convert("RGB"), Image.Resampling(self.resample))
        pixels = np.asarray(resized, dtype=np.float32) / 255.0
        scaled = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def _resized(self, image: "Image.Image", resample: "Image.Resampling") -> "Image.Image":
        width, height = image.size
        if isinstance(self.size, int):
            # The long edge is cut, not rounded: what transformers does.
            short, long = min(width, height), max(width, height)
            edge = int(self.size * long / short)
            target = (self.size, edge) if width <= height else (edge, self.size)
        else:
            target = (self.size[1], self.size[0])
        if target != image.size:
            image = image.resize(target, resample)
        if self.crop is None:
            return image
        top, left = (image.size[1] - self.crop[0]) // 2, (image.size[0] - self.crop[1]) // 2
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))


def read_preprocessing(directory: Path, image_size: int) -> Preprocessing:
    """The scorer's own preprocessing, or CLIP's for pictures of `image_size` when the folder names none."""
    path = directory / "preprocessor_config.json"
    if not path.exists():
        return Preprocessing(size=image_size, crop=(image_size, image_size))
    data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    size = _edges(data.get("size", image_size)) if data.get("do_resize", True) else (image_size, image_size)
    crop = _edges(data.get("crop_size", image_size)) if data.get("do_center_crop", True) else None
    return Preprocessing(
        size=size,
        crop=(crop, crop) if isinstance(crop, int) else crop,
        mean=tuple(data.get("image_mean", _CLIP_MEAN)),
        std=tuple(data.get("image_std", _CLIP_STD)),
        resample=int(data.get("resample", 3)),
    )


def _edges(value: int | Mapping[str, int]) -> int | tuple[int, int]:
    if isinstance(value, int):
        return value
    if "shortest_edge" in value:
        return int(value["shortest_edge"])
    return int(value["height"]), int(value["width"])


class ClipScorer:
    """A CLIPModel with its tokenizer and preprocessing.

    Example::

        scorer = ClipScorer.load("openai/clip-vit-base-patch32")
        features = scorer.image_features(images)
    """

    def __init__(self, model: "Any", tokenizer: "Any", preprocessing: Preprocessing, name: str = "") -> None:
        """Take a CLIPModel in any float type and put it into evaluation mode."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.name = name

    @classmethod
    def load(cls, path_or_id: str | Path, *, device: str = "cpu") -> "ClipScorer":
        """Load a scorer from a folder, or from the hub's cache by its id.

        Raises:
            NotFoundError: If there is no such folder or id.
            BadInputError: If what is there is not a CLIPModel.
        """
        import torch
        from transformers import CLIPModel, CLIPTokenizer

        directory = Path(path_or_id)
        try:
            model = CLIPModel.from_pretrained(str(path_or_id), dtype=torch.float32).to(device)
            tokenizer = CLIPTokenizer.from_pretrained(str(path_or_id))
        except OSError as error:
            raise NotFoundError(
                f"scorer {str(path_or_id)!r}: no such folder and no such model at hand; "
                "name a folder with a transformers CLIPModel"
            ) from error
        except (ValueError, RuntimeError, KeyError) as error:
            raise BadInputError(f"scorer {str(path_or_id)!r}: not a usable CLIPModel: {error}") from error
        size = int(model.config.vision_config.image_size)
        return cls(model, tokenizer, read_preprocessing(directory, size), name=str(path_or_id))

    def image_features(self, images: Sequence["Image.Image"], *, batch_size: int = 64) -> Features:
        """Features of pictures, [n, dim], not normalised."""
        import torch

        parts = []
        for start in range(0, len(images), batch_size):
            pixels = np.stack([self.preprocessing(image) for image in images[start : start + batch_size]])
            with torch.inference_mode():
                output = self.model.get_image_features(pixel_values=torch.from_numpy(pixels).to(self.model.device))
            parts.append(_pooled(output))
        return np.concatenate(parts)

    def text_features(self, prompts: Sequence[str], *, batch_size: int = 64) -> Features:
        """Features of prompts, [n, dim], not normalised; a prompt over the scorer's length is cut."""
        import torch

        unique = list(dict.fromkeys(prompts))
        parts = []
        for start in range(0, len(unique), batch_size):
            tokens = self.tokenizer(
                unique[start : start + batch_size],
                padding="max_length",
                truncation=True,
                max_length=int(self.model.config.text_config.max_position_embeddings),
                return_tensors="pt",
            ).to(self.model.device)
            with torch.inference_mode():
                output = self.model.get_text_features(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
            parts.append(_pooled(output))
        features = np.concatenate(parts)
        return features[[unique.index(prompt) for prompt in prompts]]


def _pooled(output: "Any") -> Features:
    """The projected features: transformers 5 returns them as `pooler_output`, before it as the tensor."""
    tensor: torch.Tensor = getattr(output, "pooler_output", output)
    return np.asarray(tensor.float().cpu().numpy(), dtype=np.float32)
