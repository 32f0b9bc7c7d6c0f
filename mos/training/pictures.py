"""Opening one picture the way its owner sees it, or saying why it cannot be used."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mos.errors import BadInputError

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
MAX_ASPECT = 4.0
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

Pixels = NDArray[np.uint8]


class DataError(BadInputError):
    """Raised when a picture, mask, caption or folder cannot be trained on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedPicture:
    """A picture as [height, width, 3] uint8, and what had to be done to it."""

    pixels: Pixels
    notes: tuple[str, ...]


def open_picture(path: Path, *, min_side: int = 32) -> OpenedPicture:
    """Decode a picture upright, opaque, in 8-bit RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8, CMYK and
    palettes are converted, of an animation the first frame is taken; each is noted. Dimensions are checked
    before any pixel is decoded, so that memory stays bounded.

    Args:
        path: the file; its content decides, not its name.
        min_side: smallest side in pixels that is accepted.

    Raises:
        DataError: With the file's name and the cause.
    """
    _check_file(path)
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_readable_formats()) as image:
                _check_size(path, image.size, min_side)
                _note_oddities(path, image, notes)
                upright = ImageOps.exif_transpose(image)
                if upright.size != image.size or image.getexif().get(0x0112, 1) not in (0, 1):
                    notes.append("turned upright by its EXIF orientation")
                pixels = _to_rgb(path, upright, notes)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path.name}: {_unidentified(path)}") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path.name}: broken picture ({reason})") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise DataError(f"{path.name}: more pixels than the {MAX_PIXELS // 10**6} million allowed") from error
    return OpenedPicture(pixels=pixels, notes=tuple(notes))


def open_mask(path: Path, size: tuple[int, int]) -> Pixels:
    """Read a concept's mask as [height, width] uint8, 255 inside.

    Args:
        path: a picture; its lightness counts, or its alpha where that is all it has.
        size: (width, height) of the picture it belongs to.

    Raises:
        DataError: If it cannot be read, has another size, or is empty.
    """
    grey = open_picture(path, min_side=1).pixels.max(axis=2)
    if grey.shape != (size[1], size[0]):
        raise DataError(
            f"{path.name}: mask of {grey.shape[1]}x{grey.shape[0]}, its picture is {size[0]}x{size[1]}; draw it again"
        )
    mask: Pixels = np.where(grey >= 128, 255, 0).astype(np.uint8)
    if not mask.any():
        raise DataError(f"{path.name}: the mask is empty (nothing is white); draw it again or remove it")
    return mask


def _readable_formats() -> list[str]:
    """The formats this Pillow was built with, of those accepted."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_file(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path.name}: a link to nothing")
    if not path.is_file():
        raise DataError(f"{path.name}: not a regular file")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path.name}: an empty file")
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path.name}: {size >> 20} MiB, at most {MAX_FILE_BYTES >> 20} are read; save it smaller")


def _check_size(path: Path, size: tuple[int, int], min_side: int) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(f"{path.name}: {width}x{height} has more pixels than the {MAX_PIXELS // 10**6} million allowed")
    if min(size) < min_side:
        raise DataError(f"{path.name}: {width}x{height} is too small, at least {min_side} a side are needed")
    if min_side > 1 and max(size) > MAX_ASPECT * min(size):
        raise DataError(f"{path.name}: {width}x{height} is longer than {MAX_ASPECT:g}:1; crop it to the subject")


def _note_oddities(path: Path, image: Image.Image, notes: list[str]) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in ("MPO",):
        notes.append(f"first of {frames} frames taken")
        image.seek(0)
    suffixes = {"JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "TIFF": (".tif", ".tiff")}
    expected = suffixes.get(image.format or "", (f".{(image.format or '').lower()}",))
    if path.suffix.lower() not in expected:
        notes.append(f"is {image.format} in spite of its name")


def _to_rgb(path: Path, image: Image.Image, notes: list[str]) -> Pixels:
    mode = image.mode
    if mode.startswith("I"):
        notes.append("16-bit grey scaled to 8 bits")
        return _grey_from_16_bit(path, image)
    if mode == "F":
        return _grey_from_float(path, image, notes)
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _over_white(image, notes)
    if mode in ("CMYK", "YCbCr", "P", "HSV"):
        notes.append(f"converted from {'palette' if mode == 'P' else mode}")
    elif mode not in ("RGB", "L", "1"):
        raise DataError(f"{path.name}: colour mode {mode} is not supported; save it as an RGB PNG or JPEG")
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _over_white(image: Image.Image, notes: list[str]) -> Pixels:
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() != (255, 255):
        notes.append("transparency laid over white")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, layered).convert("RGB"), dtype=np.uint8)


def _grey_from_16_bit(path: Path, image: Image.Image) -> Pixels:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{path.name}: 32-bit grey values outside 0 to 65535; save it with 8 or 16 bits")
    grey = (values // 257).astype(np.uint8) if values.max() > 255 else values.astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _grey_from_float(path: Path, image: Image.Image, notes: list[str]) -> Pixels:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise DataError(f"{path.name}: floating-point values outside 0 to 1; save it with 8 bits")
    notes.append("floating-point grey scaled to 8 bits")
    return np.repeat((values * 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return "HEIC is not read here; export it as JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible)"
    if head.lstrip()[:5].lower() in (b"<html", b"<!doc", b"<?xml", b"<svg "):
        return "a web page or SVG, not a picture; save the picture itself"
    return "not a picture in a known format (JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF)"
