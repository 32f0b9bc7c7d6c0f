"""How often several concepts stand each in its own region: `python -m mos.sampling.placement_run OUT`.

Trains four held-out concepts of the small world, fuses the first two, three and four of them by averaging
and by gradient fusion, and draws scenes with a seed each in the ways of :mod:`mos.sampling.placement_draw`.
Everything made stays in OUT (concepts, fusions, one line a picture), so a stopped run goes on where it was;
`--minutes` bounds the CPU time of one call.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mos.base_model import load_base
from mos.sampling.config import SMALL_WORLD_GUIDANCE, SamplingConfig
from mos.sampling.pictures import picture_grid, save_picture
from mos.sampling.placement import PlacementRow, judge, row_from_json, summarise, table
from mos.sampling.placement_cast import IDENTITY_SEED, PLACES, Stage, load_cast, make_stage
from mos.sampling.placement_draw import BATCH, METHODS, OTHERS, Drawn, Method, draw

if TYPE_CHECKING:
    from PIL import Image


def main() -> None:
    """Run, or go on with, the measurement."""
    options = _options()
    torch.set_num_threads(options.threads)
    base = load_base(options.base)
    options.out.mkdir(parents=True, exist_ok=True)
    cast = load_cast(base, options.out, max(options.counts), options.identities, options.training_steps)
    config = SamplingConfig(num_inference_steps=options.steps, guidance_scale=options.guidance, batch_size=BATCH)
    log = RowLog(options.out / "rows.jsonl")
    judged = Judging(options.out)
    stages = {count: make_stage(base, options.out, cast[:count]) for count in options.counts}
    for seeds, count, method in plan(options.counts, options.seeds, with_others=options.others):
        left = [seed for seed in seeds if (method.name, count, seed) not in log.done]
        if not left:
            continue
        if time.process_time() > 60 * options.minutes:
            print(f"stopped after {options.minutes} CPU minutes; the same command goes on from here", flush=True)
            break
        began = time.process_time()
        log.add(judged.rows(stages[count], method, left, draw(base, stages[count], method, left, config)))
        spent = time.process_time() - began
        print(f"{count} {method.name}: seeds {left[0]}-{left[-1]}, {spent:.1f} CPU s", flush=True)
    write_report(options.out, log.rows, options.counts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", default=None, help="default: the small world")
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 2, 4], choices=sorted(PLACES))
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=SMALL_WORLD_GUIDANCE)
    parser.add_argument("--identities", type=int, default=IDENTITY_SEED, help="seed of who the concepts are")
    parser.add_argument("--training-steps", type=int, default=None, help="default: the preset's")
    parser.add_argument(
        "--others", action="store_true", help="also the other guards and going without, on three concepts"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="CPU minutes after which to stop")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def plan(counts: Sequence[int], num_seeds: int, *, with_others: bool) -> Iterator[tuple[list[int], int, Method]]:
    """What to draw, batch of seeds by batch, so that a run stopped early has as many pictures of each method."""
    for start in range(0, num_seeds, BATCH):
        for count in counts:
            for method in (*METHODS, *(OTHERS if with_others and count == 3 else ())):
                yield list(range(start, min(start + BATCH, num_seeds))), count, method


class RowLog:
    """The judged pictures on disk, one JSON line each; a torn last line is drawn again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[PlacementRow] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                self.rows.append(row_from_json(json.loads(line)))
            except ValueError:
                continue
        self.done = {row.key for row in self.rows}

    def add(self, rows: Sequence[PlacementRow]) -> None:
        """Append rows; each is on disk when this returns."""
        torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n") and self._path.stat().st_size > 0
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" if torn else "")
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        self.rows += rows
        self.done.update(row.key for row in rows)


class Judging:
    """Reads each member's part by probe and scorer, and keeps the pictures that go into the grids."""

    def __init__(self, out: Path) -> None:
        from mos.evaluation.scorer import ClipScorer
        from mos.smallworld.assets import load_probe, scorer_path

        self._probe = load_probe()
        self._scorer = ClipScorer.load(scorer_path())
        self._references: dict[str, Any] = {}
        self._out = out

    def rows(self, stage: Stage, method: Method, seeds: Sequence[int], drawn: Sequence[Drawn]) -> list[PlacementRow]:
        """One row a picture."""
        identities = [member.identity for member in stage.members]
        rows = []
        for seed, scene in zip(seeds, drawn, strict=True):
            likeness = self._likeness(stage, scene.parts)
            readings = self._probe.predict(scene.parts)
            rows.append(judge(readings, identities, likeness, method=method.name, seed=seed))
            if seed % BATCH == 0:
                folder = _picture_folder(self._out, len(identities), method)
                folder.mkdir(parents=True, exist_ok=True)
                save_picture(scene.picture, folder / f"{seed:03d}.png")
        return rows

    def _likeness(self, stage: Stage, parts: Sequence[Image.Image]) -> list[list[float]]:
        features = self._scorer.image_features(list(parts))
        columns = []
        for member in stage.members:
            if member.ref.word not in self._references:
                self._references[member.ref.word] = self._scorer.image_features(list(member.references))
            columns.append((features @ self._references[member.ref.word].T).mean(axis=1))
        return [[float(value) for value in row] for row in np.stack(columns, axis=1)]


def write_report(out: Path, rows: Sequence[PlacementRow], counts: Sequence[int]) -> None:
    """The table, the cells as JSON and a grid a count (a row a method, a column a seed)."""
    order = {method.name: index for index, method in enumerate([*METHODS, *OTHERS])}
    cells = summarise(sorted(rows, key=lambda row: (row.count, order[row.method], row.seed)))
    (out / "table.md").write_text(table(cells) + "\n", encoding="utf-8")
    (out / "cells.json").write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n", encoding="utf-8")
    for count in counts:
        _write_grid(out, count)
    print(table(cells), flush=True)


def _write_grid(out: Path, count: int) -> None:
    from PIL import Image

    lines: list[list[Image.Image]] = []
    for method in (*METHODS, *OTHERS):
        lines.append([])
        for path in sorted(_picture_folder(out, count, method).glob("*.png"))[:_GRID_COLUMNS]:
            with Image.open(path) as picture:
                lines[-1].append(picture.convert("RGB"))
    lines = [line for line in lines if line]
    if not lines:
        return
    width, height = (max(getattr(picture, side) for line in lines for picture in line) for side in ("width", "height"))
    columns = max(map(len, lines))
    cells = [
        _centred(line[index] if index < len(line) else None, width, height)
        for line in lines
        for index in range(columns)
    ]
    save_picture(picture_grid(cells, columns=columns), out / f"grid-{count}.png")


_GRID_COLUMNS = 6


def _centred(picture: Image.Image | None, width: int, height: int) -> Image.Image:
    from PIL import Image

    cell = Image.new("RGB", (width, height), "white")
    if picture is not None:
        cell.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return cell


def _picture_folder(out: Path, count: int, method: Method) -> Path:
    return out / "pictures" / f"{count} {method.name}".replace(",", "").replace("'", "").replace(" ", "-")


if __name__ == "__main__":
    main()
