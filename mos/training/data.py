"""A concept's pictures, and the square views of them that training sees."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mos.concept import CONCEPT_KINDS, ConceptRef
from mos.training.captions import TOKEN, names_concept
from mos.training.config import TrainingConfig
from mos.training.folder import scan_folder
from mos.training.pictures import DataError, Pixels

__all__ = ["ConceptData", "DataError", "Picture", "View", "concept_data", "draw_views", "load_concept_data"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One picture: pixels [height, width, 3], mask [height, width] (255 inside) or None, caption, repeats."""

    name: str
    pixels: Pixels
    mask: Pixels | None = None
    caption: str = TOKEN
    repeats: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptData:
    """What one concept is trained on.

    Args:
        name: of the concept; its words are made from it.
        class_word: one word the base knows.
        kind: human, object, scene, pet or style.
        pictures: at least one.
        title: one line for people.
    """

    name: str
    class_word: str
    kind: str
    pictures: tuple[Picture, ...]
    title: str = ""

    def __post_init__(self) -> None:
        ConceptRef("owner", self.name)
        if self.kind not in CONCEPT_KINDS:
            raise DataError(f"kind {self.kind!r}: expected one of {', '.join(CONCEPT_KINDS)}")
        if not self.pictures:
            raise DataError(f"concept {self.name}: no pictures")

    @property
    def words(self) -> tuple[str, str]:
        """The concept's own two words."""
        return ConceptRef("owner", self.name).words

    def digest(self) -> str:
        """Return a sha256 of everything here; a checkpoint is only resumed on the same data."""
        digest = hashlib.sha256(f"{self.name}|{self.class_word}|{self.kind}".encode())
        for picture in self.pictures:
            digest.update(f"|{picture.name}|{picture.caption}|{picture.repeats}|{picture.pixels.shape}".encode())
            digest.update(np.ascontiguousarray(picture.pixels).data)
            digest.update(b"" if picture.mask is None else np.ascontiguousarray(picture.mask).data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A square view: pixels [3, S, S] in -1..1, valid [S, S] and mask [S, S] in 0..1, or None without a mask."""

    picture: int
    pixels: Tensor
    valid: Tensor
    mask: Tensor | None


def load_concept_data(
    directory: str | Path,
    *,
    name: str,
    class_word: str,
    kind: str = "object",
    resolution: int = 512,
    title: str = "",
) -> ConceptData:
    """Read a folder of pictures with optional captions, masks and repeats.

    Args:
        directory: see :mod:`mos.training.folder` for its layout.
        name: of the concept.
        class_word: one word the base knows.
        kind: human, object, scene, pet or style.
        resolution: of the base in pixels; larger pictures are kept at that size only.
        title: one line for people.

    Raises:
        DataError: If the folder has no picture or any file in it cannot be used; names each with its cause.
    """
    report = scan_folder(Path(directory), resolution=resolution)
    if report.refused:
        causes = "; ".join(item.cause for item in report.refused[:3])
        more = f" and {len(report.refused) - 3} more" if len(report.refused) > 3 else ""
        raise DataError(
            f"{directory}: {len(report.refused)} of {len(report.items)} pictures cannot be used: {causes}{more}; "
            f"mos data check {directory} shows all"
        )
    pictures = tuple(
        Picture(name=item.name, pixels=item.pixels, mask=item.mask, caption=item.caption, repeats=item.repeats)
        for item in report.used
        if item.pixels is not None
    )
    return ConceptData(name=name, class_word=class_word, kind=kind, pictures=pictures, title=title)


def concept_data(
    pictures: Iterable[tuple[Image.Image, str, Image.Image | None]],
    *,
    name: str,
    class_word: str,
    kind: str = "object",
    title: str = "",
) -> ConceptData:
    """Build the data from pictures in memory: (picture, caption with ``<TOK>``, mask or None) each."""
    made = tuple(
        Picture(
            name=f"{index:03d}",
            pixels=np.asarray(picture.convert("RGB"), dtype=np.uint8),
            mask=None if mask is None else np.asarray(mask.convert("L"), dtype=np.uint8),
            caption=caption if names_concept(caption) else f"{TOKEN}, {caption}",
        )
        for index, (picture, caption, mask) in enumerate(pictures)
    )
    return ConceptData(name=name, class_word=class_word, kind=kind, pictures=made, title=title)


def draw_views(data: ConceptData, config: TrainingConfig, resolution: int, generator: torch.Generator) -> list[View]:
    """Draw beforehand every square view that training will use.

    A square picture has one view. Another is either cropped (shorter side to S, random square) or padded
    (longer side to S, centred on grey, the padding not valid), ``views_per_picture`` draws in all.
    """
    views: list[View] = []
    for index, picture in enumerate(data.pictures):
        height, width = picture.pixels.shape[:2]
        for _ in range(1 if height == width else config.views_per_picture):
            is_crop = float(torch.rand((), generator=generator)) < config.crop_probability
            offset = float(torch.rand((), generator=generator))
            views.append(_view(index, picture, resolution, is_crop, offset))
        if config.flip:
            views += [_mirrored(view) for view in views if view.picture == index]
    return views


def _view(index: int, picture: Picture, size: int, is_crop: bool, offset: float) -> View:
    pixels = Image.fromarray(picture.pixels)
    mask = None if picture.mask is None else Image.fromarray(picture.mask)
    box = _placement(pixels.size, size, is_crop, offset)
    canvas = _paste(pixels, size, box, fill=(128, 128, 128))
    valid = _paste(Image.new("L", pixels.size, 255), size, box, fill=0)
    placed = None if mask is None else _paste(mask, size, box, fill=0)
    return View(
        picture=index,
        pixels=torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous(),
        valid=torch.from_numpy(np.asarray(valid, dtype=np.float32) / 255).round(),
        mask=None if placed is None else torch.from_numpy(np.asarray(placed, dtype=np.float32) / 255),
    )


def _placement(original: tuple[int, int], size: int, is_crop: bool, offset: float) -> tuple[int, int, int, int]:
    """Say where a resized picture goes on the canvas: (x, y, width, height), outside parts are cut."""
    scale = size / (min(original) if is_crop else max(original))
    width, height = (max(1, round(side * scale)) for side in original)
    if is_crop:
        return -round(offset * (width - size)), -round(offset * (height - size)), width, height
    return (size - width) // 2, (size - height) // 2, width, height


def _paste(image: Image.Image, size: int, box: tuple[int, int, int, int], fill: object) -> Image.Image:
    x, y, width, height = box
    resized = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new(image.mode, (size, size), fill)  # type: ignore[arg-type]
    canvas.paste(resized, (x, y))
    return canvas


def _mirrored(view: View) -> View:
    return View(
        picture=view.picture,
        pixels=view.pixels.flip(-1),
        valid=view.valid.flip(-1),
        mask=None if view.mask is None else view.mask.flip(-1),
    )
