"""A contact sheet of a folder: every picture as training will see it, refused ones marked."""

import numpy as np
from PIL import Image, ImageDraw

from mos.training.folder import FolderItem, FolderReport

_SIDE = 128
_LABEL = 26
_COLUMNS = 6
_MOST = 120


def contact_sheet(report: FolderReport) -> Image.Image:
    """Draw a folder's pictures in rows of six, the first 120 of them.

    A used picture is shown whole on the square canvas, what lies outside its mask darkened; a refused one
    is a red field. Below each stands its name and what was noted.
    """
    items = report.items[:_MOST]
    rows = -(-len(items) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * (_SIDE + 8) + 8, rows * (_SIDE + _LABEL + 8) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for index, item in enumerate(items):
        x = 8 + (index % _COLUMNS) * (_SIDE + 8)
        y = 8 + (index // _COLUMNS) * (_SIDE + _LABEL + 8)
        sheet.paste(_tile(item), (x, y))
        remark = "REFUSED" if item.cause else "; ".join(item.notes)
        for line, text in enumerate((item.name, remark)):
            draw.text((x, y + _SIDE + 1 + 12 * line), _short(text), fill="#a00" if item.cause else "#333")
    return sheet


def _tile(item: FolderItem) -> Image.Image:
    tile = Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128) if not item.cause else (220, 90, 90))
    if item.pixels is None:
        return tile
    pixels = item.pixels
    if item.mask is not None:
        dimmed = pixels * np.where(item.mask[:, :, None] >= 128, 1.0, 0.35)
        pixels = dimmed.astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE))
    tile.paste(picture, ((_SIDE - picture.width) // 2, (_SIDE - picture.height) // 2))
    return tile


def _short(text: str) -> str:
    plain = text.encode("ascii", "replace").decode()
    return plain if len(plain) <= 21 else plain[:19] + ".."
