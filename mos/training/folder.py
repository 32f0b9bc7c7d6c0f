"""A folder of pictures: what is in it, what will be used, and why the rest cannot be.

Layout: pictures directly in the folder, or in subfolders ``N_anything`` whose pictures count N times. A
picture ``cat.jpg`` may have a caption in the first line of ``cat.txt`` (``<TOK>`` is the concept) and a mask
``cat.mask.png`` or ``masks/cat.png`` (white is the concept). Hidden files are not looked at.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mos.concept import WORD_PATTERN
from mos.training.captions import TOKEN, names_concept
from mos.training.pictures import EXTENSIONS, DataError, Pixels, open_mask, open_picture

MAX_PICTURES = 500
MAX_CAPTION_BYTES = 4096
_REPEATS = re.compile(r"(\d{1,3})_.*")
_DUPLICATE_LEVELS = 6.0


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderItem:
    """One picture of a folder; ``cause`` is empty where it is used and says why where it is refused.

    ``size`` is (width, height) upright, before it was shrunk to the base's resolution.
    """

    name: str
    cause: str = ""
    notes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    pixels: Pixels | None = field(default=None, repr=False)
    mask: Pixels | None = field(default=None, repr=False)
    caption: str = TOKEN
    repeats: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderReport:
    """What a folder holds: its pictures in order of name, remarks on other files, near-duplicate pairs."""

    items: tuple[FolderItem, ...]
    remarks: tuple[str, ...]
    near_duplicates: tuple[tuple[str, str], ...]

    @property
    def used(self) -> tuple[FolderItem, ...]:
        """The pictures that will be trained on."""
        return tuple(item for item in self.items if not item.cause)

    @property
    def refused(self) -> tuple[FolderItem, ...]:
        """The pictures that cannot be used."""
        return tuple(item for item in self.items if item.cause)


def scan_folder(directory: Path, *, resolution: int) -> FolderReport:
    """Look at every file of a folder; memory is bounded by one decoded picture and small copies.

    Args:
        directory: the folder.
        resolution: of the base; smaller pictures than a quarter of it are refused, larger ones kept at it.

    Raises:
        DataError: If the folder does not exist, or holds no picture or too many.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder of pictures")
    paths = sorted(_picture_paths(directory))
    if not paths:
        raise DataError(f"{directory}: no pictures in it (looked for {', '.join(EXTENSIONS)})")
    if len(paths) > MAX_PICTURES:
        raise DataError(f"{directory}: {len(paths)} pictures, at most {MAX_PICTURES}; 5 to 20 good ones are enough")
    items = tuple(_read_item(directory, path, resolution) for path in paths)
    return FolderReport(
        items=items,
        remarks=tuple(_remarks(directory, set(paths))),
        near_duplicates=tuple(_near_duplicates([item for item in items if not item.cause])),
    )


def _picture_paths(directory: Path) -> Iterator[Path]:
    folders = [directory, *(entry for entry in directory.iterdir() if entry.is_dir() and _repeats(entry))]
    for folder in folders:
        for path in folder.iterdir():
            is_picture = path.suffix.lower() in EXTENSIONS and not path.is_dir()
            if is_picture and not path.name.startswith(".") and not path.name.lower().endswith(".mask.png"):
                yield path


def _repeats(folder: Path) -> int:
    match = _REPEATS.fullmatch(folder.name)
    return min(int(match[1]), 100) if match else 0


def _read_item(directory: Path, path: Path, resolution: int) -> FolderItem:
    name = str(path.relative_to(directory))
    try:
        opened = open_picture(path, min_side=max(32, resolution // 4))
        notes = list(opened.notes)
        height, width = opened.pixels.shape[:2]
        mask_path = _mask_path(path)
        mask = None if mask_path is None else open_mask(mask_path, (width, height))
        caption = _read_caption(path, notes)
    except DataError as error:
        cause = str(error)
        return FolderItem(name=name, cause=cause if cause.startswith(name) else f"{name}: {cause}")
    if min(width, height) < resolution:
        notes.append(f"{width}x{height} is enlarged to {resolution}")
    return FolderItem(
        name=name,
        notes=tuple(notes),
        size=(width, height),
        pixels=_shrunk(opened.pixels, resolution, Image.Resampling.LANCZOS),
        mask=None if mask is None else _shrunk(mask, resolution, Image.Resampling.BOX),
        caption=caption,
        repeats=_repeats(path.parent) if path.parent != directory else 1,
    )


def _mask_path(path: Path) -> Path | None:
    candidates = (path.with_name(f"{path.stem}.mask.png"), path.parent / "masks" / f"{path.stem}.png")
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _read_caption(path: Path, notes: list[str]) -> str:
    source = path.with_suffix(".txt")
    if not source.exists():
        return TOKEN
    raw = source.read_bytes() if source.is_file() and source.stat().st_size <= MAX_CAPTION_BYTES else None
    if raw is None:
        raise DataError(f"{source.name}: a caption is one line in a file of at most {MAX_CAPTION_BYTES} bytes")
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{source.name}: the caption is not UTF-8 text; save it as UTF-8") from error
    caption = " ".join(lines[0].split()) if lines else ""
    if not caption:
        return TOKEN
    if not caption.isprintable():
        raise DataError(f"{source.name}: the caption holds control characters; write plain text")
    foreign = [word for word in re.findall(WORD_PATTERN.pattern, caption.lower()) if word != TOKEN.lower()]
    if foreign or "<|" in caption:
        raise DataError(
            f"{source.name}: the caption uses {(foreign or ['<|'])[0]}; only {TOKEN} stands for the concept"
        )
    if names_concept(caption):
        return caption
    notes.append(f"caption without {TOKEN}: put in front of it")
    return f"{TOKEN}, {caption}"


def _shrunk(pixels: Pixels, resolution: int, method: Image.Resampling) -> Pixels:
    """Keep the shorter side at the resolution at most."""
    height, width = pixels.shape[:2]
    scale = resolution / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, method), dtype=np.uint8)


def _remarks(directory: Path, pictures: set[Path]) -> Iterator[str]:
    stems = {path.with_suffix("") for path in pictures}
    for path in sorted(directory.iterdir()):
        if path in pictures or path.name.startswith(".") or path.name.lower().endswith(".mask.png"):
            continue
        if path.suffix.lower() == ".txt":
            if path.with_suffix("") not in stems:
                yield f"{path.name}: a caption without a picture, not used"
        elif path.is_dir():
            if not _repeats(path) and path.name != "masks":
                yield f"{path.name}/: not looked at (subfolders are read when named N_anything)"
        else:
            yield f"{path.name}: not a picture, not used"


def _near_duplicates(items: list[FolderItem]) -> Iterator[tuple[str, str]]:
    """Pairs whose 16x16 copies differ by a few grey levels on average."""
    copies = [
        np.asarray(Image.fromarray(item.pixels).resize((16, 16), Image.Resampling.BOX), dtype=np.float32)
        for item in items
        if item.pixels is not None
    ]
    for left in range(len(copies)):
        for right in range(left + 1, len(copies)):
            if float(np.abs(copies[left] - copies[right]).mean()) < _DUPLICATE_LEVELS:
                yield items[left].name, items[right].name
