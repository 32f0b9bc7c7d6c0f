"""Odd and hostile picture files made by code, each with what must become of it."""

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

Case = tuple[str, Callable[[Path], object], str]
"""File name, what writes it, and either ``used`` with the colour expected at the top left, or a cause."""

SIZE = (96, 64)
RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (255, 255, 255)


def quarters(size: tuple[int, int] = SIZE) -> Image.Image:
    """Red, green, blue and white quarters: any turn or mirroring shows."""
    width, height = size
    image = Image.new("RGB", size, WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def saved(image: Image.Image, kind: str, **options) -> Callable[[Path], object]:
    """A writer that saves an image in a format whatever the file is called."""
    return lambda path: image.save(path, format=kind, **options)


def written(content: bytes) -> Callable[[Path], object]:
    """A writer of plain bytes."""
    return lambda path: path.write_bytes(content)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """An image's bytes in a format."""
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk with its right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def turned(orientation: int) -> Callable[[Path], object]:
    """A JPEG whose pixels lie as a camera stores them, with the orientation that puts them right."""
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    image = quarters() if method is None else quarters().transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, "JPEG", quality=95, exif=exif)


def odd_but_good() -> Iterator[Case]:
    picture = quarters()
    for orientation in range(1, 9):
        yield f"orientation{orientation}.jpg", turned(orientation), "used red"
    rgba = picture.convert("RGBA")
    rgba.putalpha(Image.new("L", SIZE, 255))
    hidden = rgba.copy()
    hidden.putalpha(Image.new("L", SIZE, 0))
    grey16 = np.full((SIZE[1], SIZE[0]), 32896, dtype=np.uint16)
    plain = {
        "plain.jpg": saved(picture, "JPEG", quality=95),
        "plain.png": saved(picture, "PNG"),
        "UPPER.JPG": saved(picture, "JPEG", quality=95),
        "progressive.jpeg": saved(picture, "JPEG", quality=95, progressive=True),
        "plain.webp": saved(picture, "WEBP", lossless=True),
        "plain.bmp": saved(picture, "BMP"),
        "plain.tif": saved(picture, "TIFF"),
        "plain.ppm": saved(picture, "PPM"),
        "palette.png": saved(picture.quantize(16), "PNG"),
        "palette.gif": saved(picture, "GIF"),
        "opaque alpha.png": saved(rgba, "PNG"),
        "bildä名.png": saved(picture, "PNG"),
        "really a png.jpg": saved(picture, "PNG"),
        "really a jpeg.png": saved(picture, "JPEG", quality=95),
        "cmyk.jpg": saved(picture.convert("CMYK"), "JPEG", quality=95),
        "cmyk.tif": saved(picture.convert("CMYK"), "TIFF"),
        "garbage behind.jpg": written(encoded(picture, "JPEG", quality=95) + b"\x00" * 1000),
        "broken exif.jpg": saved(picture, "JPEG", quality=95, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"),
        "large.png": saved(picture.resize((2400, 1600), Image.Resampling.NEAREST), "PNG"),
        "animated.gif": saved(picture, "GIF", save_all=True, append_images=[Image.new("RGB", SIZE)]),
        "animated.webp": saved(picture, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", SIZE)]),
        "animated.png": saved(picture, "PNG", save_all=True, append_images=[Image.new("RGB", SIZE)]),
        "pages.tiff": saved(picture, "TIFF", save_all=True, append_images=[Image.new("RGB", SIZE)]),
        "long comment.png": long_comment(picture),
    }
    for name, write in plain.items():
        yield name, write, "used red"
    yield "hidden colour.png", saved(hidden, "PNG"), "used white"
    yield "grey alpha.png", saved(Image.new("LA", SIZE, (10, 0)), "PNG"), "used white"
    yield "transparent palette.gif", saved(Image.new("P", SIZE, 0), "GIF", transparency=0), "used white"
    yield "grey.png", saved(Image.new("L", SIZE, 128), "PNG"), "used grey"
    yield "one bit.png", saved(Image.new("1", SIZE, 1), "PNG"), "used white"
    yield "sixteen bit.png", saved(Image.fromarray(grey16), "PNG"), "used grey"
    yield "sixteen bit.tif", saved(Image.fromarray(grey16), "TIFF"), "used grey"
    yield "float.tif", saved(Image.fromarray(np.full((64, 96), 0.5, np.float32)), "TIFF"), "used grey"


def long_comment(picture: Image.Image) -> Callable[[Path], object]:
    """A PNG with half a megabyte of text in it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 500_000)
    return saved(picture, "PNG", pnginfo=info)


def useless() -> Iterator[Case]:
    jpeg, png = encoded(quarters(), "JPEG", quality=95), encoded(quarters(), "PNG")
    noise = np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8).tobytes()
    header = b"\x89PNG\r\n\x1a\n"
    bomb = (
        header
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(b"\x00" * 100_000))
    )
    text_bomb = png[:33] + png_chunk(b"zTXt", b"a\x00\x00" + zlib.compress(b"x" * 80_000_000, 9)) + png[33:]
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("cat.jpg", jpeg)
    contents = {
        "empty.jpg": (b"", "an empty file"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "broken picture"),
        "cut.png": (png[:-40], "broken picture"),
        "only a head.jpg": (jpeg[:20], "broken picture|not a picture"),
        "wrong checksum.png": (png[:60] + bytes([png[60] ^ 255]) + png[61:], "broken picture"),
        "web page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        "drawing.png": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "web page or SVG"),
        "notes.jpg": (b"just some words about a cat " * 30, "not a picture"),
        "archive.png": (archive.getvalue(), "not a picture"),
        "noise.jpg": (noise, "not a picture"),
        "paper.png": (b"%PDF-1.7\n" + noise, "not a picture"),
        "program.jpg": (b"\x7fELF\x02\x01\x01" + noise, "not a picture"),
        "phone.heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1" + noise, "HEIC is not read here"),
        "phone.jpg": (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00heicmif1" + noise, "HEIC is not read here"),
        "bomb.png": (bomb, "more pixels"),
        "text bomb.png": (text_bomb, "broken picture"),
        "lying.bmp": (b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 500, 500, 1, 24,
                      0, 0, 0, 0, 0, 0), "broken picture"),
        "loop.tif": (b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00" + b"\x00" * 8, "broken picture|not a picture"),
        "cut.webp": (encoded(quarters(), "WEBP")[:60], "broken picture|not a picture"),
        "cut.gif": (encoded(quarters(), "GIF")[:30], "broken picture|not a picture"),
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        "layers.jpg": (b"8BPS\x00\x01" + noise, "not a picture"),
    }  # fmt: skip
    for name, (content, cause) in contents.items():
        yield name, written(content), cause
    yield "tiny.png", saved(Image.new("RGB", (8, 8)), "PNG"), "too small"
    yield "one pixel.gif", saved(Image.new("RGB", (1, 1)), "GIF"), "too small"
    yield "ribbon.png", saved(Image.new("RGB", (900, 90)), "PNG"), "longer than 4:1"
    yield "lab.tif", saved(Image.new("LAB", SIZE), "TIFF"), "colour mode LAB"
    nan = np.full((64, 96), np.nan, dtype=np.float32)
    yield "nan.tif", saved(Image.fromarray(nan), "TIFF"), "floating-point values"
    deep = np.full((64, 96), 1 << 20, dtype=np.int32)
    yield "32 bit.tif", saved(Image.fromarray(deep), "TIFF"), "32-bit grey"
    yield "link.jpg", lambda path: path.symlink_to("nowhere.jpg"), "a link to nothing"
    yield "pipe.jpg", lambda path: os.mkfifo(path), "not a regular file"


def with_companions() -> Iterator[Case]:
    """Good pictures whose caption or mask is the trouble."""

    def beside(suffix: str, content: bytes) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            quarters().save(path, format="PNG")
            path.with_name(path.stem + suffix).write_bytes(content)

        return write

    small = encoded(Image.new("L", (10, 10), 255), "PNG")
    black = encoded(Image.new("L", SIZE, 0), "PNG")
    white = encoded(Image.new("L", SIZE, 255), "PNG")
    yield "small mask.png", beside(".mask.png", small), "mask of 10x10, its picture is 96x64"
    yield "black mask.png", beside(".mask.png", black), "the mask is empty"
    yield "broken mask.png", beside(".mask.png", b"nothing"), "not a picture"
    yield "white mask.png", beside(".mask.png", white), "used red"
    yield "latin caption.png", beside(".txt", "ein K\u00e4tzchen".encode("latin-1")), "not UTF-8"
    yield "bell caption.png", beside(".txt", b"a photo\x07 of <TOK>"), "control characters"
    yield "other word.png", beside(".txt", b"<TOK> beside <bob-cat>"), "only <TOK> stands"
    yield "long caption.png", beside(".txt", b"a" * 5000), "at most 4096 bytes"
    yield "special caption.png", beside(".txt", b"<TOK> <|endoftext|>"), "only <TOK> stands"
    yield "empty caption.png", beside(".txt", b""), "used red"
    yield "two lines.png", beside(".txt", b"\xef\xbb\xbf<TOK> at home\nsecond line"), "used red"


def all_cases() -> list[Case]:
    """Every case."""
    return [*odd_but_good(), *useless(), *with_companions()]
