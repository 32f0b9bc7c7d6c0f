"""Loss curves of a training directory as one small picture: `python -m mos.smallworld.curves RUN --out PNG`."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from mos.errors import MosError, NotFoundError

_WIDTH, _HEIGHT, _MARGIN = 460, 220, 34
_INK, _LINE, _GRID = (40, 40, 40), (30, 90, 200), (220, 220, 220)


def main(arguments: list[str] | None = None) -> int:
    """Draw the picture and print its path."""
    parser = argparse.ArgumentParser(prog="python -m mos.smallworld.curves", description=__doc__)
    parser.add_argument("run", type=Path, help="folder that `python -m mos.smallworld.pretrain --out` wrote")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    options = parser.parse_args(arguments)
    try:
        print(draw_curves(options.run, options.out))
    except MosError as error:
        print(f"curves: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def draw_curves(directory: Path, path: Path) -> Path:
    """Draw what `directory`'s logs hold: the PSNR of autoencoder and decoder, the losses of the base, scorer and probe.

    Raises:
        NotFoundError: If it holds none.
    """
    plots = (
        ("autoencoder.jsonl", "psnr", "autoencoder: PSNR in dB"),
        ("decoder.jsonl", "psnr", "decoder: PSNR in dB"),
        ("base.jsonl", "loss", "text encoder and U-Net: loss"),
        ("probe.jsonl", "loss", "probe: loss"),
        ("scorer.jsonl", "loss", "scorer: loss"),
    )
    if not any((directory / name).is_file() for name, _, _ in plots):
        raise NotFoundError(f"{directory}: no log of a training there; name the folder given to pretrain --out")
    canvas = Image.new("RGB", (2 * _WIDTH, (len(plots) + 1) // 2 * _HEIGHT), "white")
    for index, (name, key, title) in enumerate(plots):
        points = read_points(directory / name, key)
        if points:
            canvas.paste(_plot(points, title), (index % 2 * _WIDTH, index // 2 * _HEIGHT))
    canvas.quantize(32).save(path, optimize=True)
    return path


def read_points(path: Path, key: str) -> list[tuple[float, float]]:
    """Steps and values of a log; of steps done twice, because training was resumed, the later ones."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    latest = {int(row["step"]): float(row[key]) for row in rows}
    return [(float(step), latest[step]) for step in sorted(latest)]


def _plot(points: Sequence[tuple[float, float]], title: str) -> Image.Image:
    """A line on logarithmic height, its ends and extremes named."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    values = [value for _, value in points]
    low, high = math.log(min(values)), math.log(max(values))
    last = points[-1][0]

    def place(step: float, value: float) -> tuple[float, float]:
        across = _MARGIN + (_WIDTH - 2 * _MARGIN) * step / last
        share = (math.log(value) - low) / max(high - low, 1e-9)
        return across, _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * share

    for value in (min(values), max(values)):
        height = place(0, value)[1]
        draw.line([(_MARGIN, height), (_WIDTH - _MARGIN, height)], fill=_GRID)
        draw.text((2, height - 6), f"{value:.3g}", fill=_INK)
    draw.line([place(step, value) for step, value in points], fill=_LINE, width=2)
    draw.text((_MARGIN, 8), title, fill=_INK)
    draw.text((_WIDTH - _MARGIN - 60, _HEIGHT - 24), f"{int(last)} steps", fill=_INK)
    return image


if __name__ == "__main__":
    sys.exit(main())
