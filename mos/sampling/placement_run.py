"""How often several concepts stand each in its own region: `python -m mos.sampling.placement_run OUT`.

Trains four held-out concepts of the small world, fuses the first two, three and four of them by averaging
and by gradient fusion, and draws scenes with a seed each: by a plain prompt naming everyone, by regional
sampling from both fusions, and with unfused adapters, with and without a guard against bleeding. Everything
made stays in OUT (concepts, fusions, one line a picture), so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mos.base_model import BaseModel, load_base
from mos.concept import ConceptRef
from mos.sampling.auto_layout import compact_boxes
from mos.sampling.config import BleedingGuard, SamplingConfig
from mos.sampling.pictures import picture_grid, save_picture
from mos.sampling.placement import PlacementRow, crop, judge, row_from_json, summarise, table
from mos.sampling.region import Box, Region
from mos.sampling.sampler import sample

if TYPE_CHECKING:
    from PIL import Image

    from mos.artifact import EDLoRA
    from mos.edlora.adapter import Adapter
    from mos.fusion.config import StrategyName
    from mos.smallworld.world import Identity

CAST = (("alice", "robot"), ("bob", "cat"), ("carol", "house"), ("dan", "mug"))
IDENTITY_SEED = 11
"""The first seed whose robot, cat and house share neither pattern, accessory nor hue: a leak can be told."""
RENDERS, PLAIN, AVERAGE, GRADIENT, UNFUSED = (
    "ceiling: renders", "plain prompt, gradient fusion", "regions, average", "regions, gradient fusion",
    "regions, unfused",
)  # fmt: skip
GUARDED: dict[str, tuple[str, BleedingGuard]] = {
    f"{method}, guard {guard}": (method, guard)
    for method in (GRADIENT, UNFUSED)
    for guard in ("self-attention", "blend")
}
METHODS = (RENDERS, PLAIN, AVERAGE, GRADIENT, UNFUSED)
PLACES = {2: ("left", "right"), 3: ("top left", "top right", "bottom"),
          4: ("top left", "top right", "bottom left", "bottom right")}  # fmt: skip
BATCH = 10
"""Seeds drawn together, on one backdrop; the first of each batch is shown in the grids."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One concept of the cast: its reference, who it is, what it was trained on and what came of it."""

    ref: ConceptRef
    identity: Identity
    references: Sequence[Image.Image]
    edlora: EDLoRA


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A number of concepts that share pictures, and the adapters that draw them."""

    members: Sequence[Member]
    boxes: tuple[Box, ...]
    fused: dict[str, Adapter]


def main() -> None:
    """Run, or go on with, the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", default=None, help="default: the small world")
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 2, 4], choices=sorted(PLACES))
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--training-steps", type=int, default=None, help="default: the preset's")
    parser.add_argument("--guards", action="store_true", help="also measure the guards, on three concepts")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base(options.base)
    options.out.mkdir(parents=True, exist_ok=True)
    cast = load_cast(base, options.out, max(options.counts), options.training_steps)
    config = SamplingConfig(num_inference_steps=options.steps, guidance_scale=options.guidance, batch_size=BATCH)
    log = RowLog(options.out / "rows.jsonl")
    judged = Judging(options.out)
    stages = {count: make_stage(base, options.out, cast[:count]) for count in options.counts}
    for start in range(0, options.seeds, BATCH):
        seeds = list(range(start, min(start + BATCH, options.seeds)))
        for count, stage in stages.items():
            methods = [*METHODS, *(GUARDED if options.guards and count == 3 else ())]
            for method in methods:
                left = [seed for seed in seeds if (method, count, seed) not in log.done]
                if left:
                    began = time.process_time()
                    pictures = draw(base, stage, method, left, config)
                    log.add(judged.rows(stage, method, left, pictures))
                    print(
                        f"{count} {method}: seeds {left[0]}-{left[-1]}, {time.process_time() - began:.1f} CPU s",
                        flush=True,
                    )
        write_report(options.out, log.rows, options.counts)


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
    """Reads crops by probe and scorer, and keeps the pictures that go into the grids."""

    def __init__(self, out: Path) -> None:
        from mos.evaluation.scorer import ClipScorer
        from mos.smallworld.assets import load_probe, scorer_path

        self._probe = load_probe()
        self._scorer = ClipScorer.load(scorer_path())
        self._references: dict[str, Any] = {}
        self._out = out

    def rows(
        self, stage: Stage, method: str, seeds: Sequence[int], pictures: Sequence[Image.Image]
    ) -> list[PlacementRow]:
        """One row a picture."""
        identities = [member.identity for member in stage.members]
        rows = []
        for seed, picture in zip(seeds, pictures, strict=True):
            crops = [crop(picture, box) for box in stage.boxes]
            likeness = self._likeness(stage, crops)
            rows.append(judge(self._probe.predict(crops), identities, likeness, method=method, seed=seed))
            if seed % BATCH == 0:
                folder = self._out / "pictures" / f"{len(identities)} {method}".replace(": ", " ").replace(" ", "-")
                folder.mkdir(parents=True, exist_ok=True)
                save_picture(picture, folder / f"{seed:03d}.png")
        return rows

    def _likeness(self, stage: Stage, crops: Sequence[Image.Image]) -> list[list[float]]:
        features = self._scorer.image_features(crops)
        columns = []
        for member in stage.members:
            if member.ref.word not in self._references:
                self._references[member.ref.word] = self._scorer.image_features(list(member.references))
            columns.append((features @ self._references[member.ref.word].T).mean(axis=1))
        return [[float(value) for value in row] for row in np.stack(columns, axis=1)]


def load_cast(base: BaseModel, out: Path, count: int, training_steps: int | None) -> list[Member]:
    """Open the concepts in OUT, training those that are missing side by side on one base."""
    from mos.artifact import read_artifact, write_artifact
    from mos.smallworld.concepts import concept_pictures
    from mos.smallworld.world import concept_identity
    from mos.training import PRESETS, SlotSpec, Trainer, concept_data

    config = PRESETS["small-world"]
    config = config if training_steps is None else replace(config, steps=training_steps)
    shown = {}
    trainer = Trainer(base)
    for owner, class_name in CAST[:count]:
        identity = concept_identity(IDENTITY_SEED, class_name)
        shown[class_name] = (ConceptRef(owner, class_name, 1), identity, concept_pictures(identity, IDENTITY_SEED))
        if not (out / f"{owner}-{class_name}.safetensors").exists():
            data = concept_data(shown[class_name][2], name=class_name, class_word=class_name)
            trainer.admit(SlotSpec(key=f"{owner}-{class_name}", data=data, config=config))
    keys = trainer.keys
    while trainer.keys:
        reports = trainer.step()
        if reports and reports[0].step % 50 == 0:
            print(f"training step {reports[0].step} of {reports[0].steps}", flush=True)
        if any(report.is_done for report in reports):
            break
    for key in keys:
        write_artifact(trainer.finish(key), out / f"{key}.safetensors")
    return [
        Member(
            ref=ref,
            identity=identity,
            references=[picture for picture, _, _ in pictures],
            edlora=read_artifact(out / f"{ref.owner}-{ref.name}.safetensors", base.facts),
        )
        for ref, identity, pictures in shown.values()
    ]


def make_stage(base: BaseModel, out: Path, members: Sequence[Member]) -> Stage:
    """Fuse the members by averaging and by gradient fusion, unless OUT has it already."""
    from mos.fusion import FusionConfig, FusionSource, fuse, read_fused, write_fused

    sources = [FusionSource(ref=member.ref, edlora=member.edlora) for member in members]
    fused = {}
    strategies: tuple[tuple[str, StrategyName], ...] = ((AVERAGE, "average"), (GRADIENT, "gradient"))
    for method, strategy in strategies:
        folder = out / f"fused-{len(members)}-{strategy}"
        if not folder.exists():
            print(f"fusing {len(members)} concepts by {strategy}", flush=True)
            write_fused(fuse(base, sources, FusionConfig(strategy=strategy, measure=False)), folder)
        fused[method] = read_fused(folder, base.facts).adapter
    return Stage(members=members, boxes=compact_boxes(len(members)), fused=fused)


def draw(base: BaseModel, stage: Stage, method: str, seeds: Sequence[int], config: SamplingConfig) -> list[Image.Image]:
    """Draw one scene a seed; the seeds of a batch share their backdrop."""
    from mos.evaluation.drawing import supports_bfloat16
    from mos.smallworld.captions import BACKDROP_PHRASES

    if method == RENDERS:
        return [render(stage, seed) for seed in seeds]
    method, guard = GUARDED.get(method, (method, "none"))
    place = BACKDROP_PHRASES[_backdrop(seeds[0])]
    words = [member.ref.word if method == PLAIN else member.identity.class_name for member in stage.members]
    with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=supports_bfloat16()):
        return sample(
            base,
            stage.fused[GRADIENT] if method == PLAIN else stage.fused.get(method),
            [scene_prompt(words, place)] * len(seeds),
            regions=() if method == PLAIN else regions_of(stage, place, is_unfused=method == UNFUSED),
            seeds=seeds,
            config=replace(config, bleeding_guard=guard),
        )


def regions_of(stage: Stage, place: str, *, is_unfused: bool) -> list[Region]:
    """Each member in its box, with its own adapter if it is not fused in."""
    return [
        Region(
            prompt=f"a {member.ref.word} {place}",
            box=box,
            adapter=member.edlora.adapter(member.ref) if is_unfused else None,
        )
        for member, box in zip(stage.members, stage.boxes, strict=True)
    ]


def scene_prompt(words: Sequence[str], place: str) -> str:
    """Name everyone with their place, as the small world's captions do."""
    placed = [
        f"a {word} {'on' if where in ('left', 'right') else 'at'} the {where}"
        for word, where in zip(words, PLACES[len(words)], strict=True)
    ]
    return f"{' and '.join(placed)} {place}"


def render(stage: Stage, seed: int) -> Image.Image:
    """What a perfect model would draw: the identities themselves, each in the middle of its box."""
    from mos.smallworld.render import Scene, Subject, render_scene
    from mos.smallworld.world import PICTURE_SIZE

    rng = np.random.default_rng([20281, seed])
    subjects = tuple(
        Subject(
            identity=member.identity,
            centre=(
                PICTURE_SIZE * (x0 + x1) / 2 + float(rng.uniform(-0.8, 0.8)),
                PICTURE_SIZE * (y0 + y1) / 2 + float(rng.uniform(-0.8, 0.8)),
            ),
            size=float(rng.uniform(27.0, 31.0)),
            tilt=float(rng.uniform(-6.0, 6.0)),
            flip=bool(rng.integers(2)),
        )
        for member, (x0, y0, x1, y1) in zip(stage.members, stage.boxes, strict=True)
    )
    return render_scene(Scene(subjects=subjects, backdrop=_backdrop(seed)), with_masks=False).image


def write_report(out: Path, rows: Sequence[PlacementRow], counts: Sequence[int]) -> None:
    """The table, the cells as JSON and a grid a count (a row a method, a column a seed)."""
    from PIL import Image

    order = {method: index for index, method in enumerate([*METHODS, *GUARDED])}
    cells = summarise(sorted(rows, key=lambda row: (row.count, order[row.method], row.seed)))
    (out / "table.md").write_text(table(cells) + "\n", encoding="utf-8")
    (out / "cells.json").write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n", encoding="utf-8")
    for count in counts:
        shown: list[Image.Image] = []
        columns = 1
        for method in order:
            folder = out / "pictures" / f"{count} {method}".replace(": ", " ").replace(" ", "-")
            paths = sorted(folder.glob("*.png"))
            columns = max(columns, len(paths))
            for path in paths:
                with Image.open(path) as picture:
                    shown.append(picture.convert("RGB"))
        if shown:
            save_picture(picture_grid(shown, columns=columns), out / f"grid-{count}.png")
    print(table(cells), flush=True)


def _backdrop(seed: int) -> str:
    from mos.smallworld.world import BACKDROPS

    return BACKDROPS[seed // BATCH % len(BACKDROPS)]


if __name__ == "__main__":
    main()
