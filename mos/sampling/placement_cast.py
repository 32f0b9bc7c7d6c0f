"""The cast of the placement measurement: four held-out concepts, trained and fused, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mos.base_model import BaseModel
from mos.concept import ConceptRef
from mos.sampling.auto_layout import compact_boxes, row_boxes
from mos.sampling.region import Box

if TYPE_CHECKING:
    from PIL import Image

    from mos.artifact import EDLoRA
    from mos.edlora.adapter import Adapter
    from mos.fusion.config import StrategyName
    from mos.smallworld.world import Identity

CAST = (("alice", "robot"), ("bob", "cat"), ("carol", "house"), ("dan", "mug"))
IDENTITY_SEED = 11
"""The first seed whose robot, cat and house share neither pattern, accessory nor hue: a leak can be told."""
FUSIONS: tuple[StrategyName, ...] = ("average", "gradient")
PLACES = {2: ("left", "right"), 3: ("top left", "top right", "bottom"),
          4: ("top left", "top right", "bottom left", "bottom right")}  # fmt: skip
"""What the small world's captions call the places of `compact_boxes`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One concept of the cast: its reference, who it is, what it was trained on and what came of it."""

    ref: ConceptRef
    identity: Identity
    references: Sequence[Image.Image]
    edlora: EDLoRA


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """The size of a picture in pixels, and a box for everyone in it."""

    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A number of concepts that share pictures, and the fused models that draw them."""

    members: Sequence[Member]
    fused: dict[str, Adapter]


def square_canvas(count: int, side: int) -> Canvas:
    """A picture of the base's own size, shared as the small world's captions know it."""
    return Canvas(width=side, height=side, boxes=compact_boxes(count))


def wide_canvas(count: int, side: int, column: int) -> Canvas:
    """Everyone side by side in a column of their own, `column` pixels wide and as high as the base's pictures."""
    return Canvas(width=count * column, height=side, boxes=row_boxes(count))


def load_cast(base: BaseModel, out: Path, count: int, identities: int, training_steps: int | None) -> list[Member]:
    """Open the concepts in a folder, training those that are missing side by side on one base."""
    from mos.artifact import read_artifact, write_artifact
    from mos.smallworld.concepts import concept_pictures
    from mos.smallworld.world import concept_identity
    from mos.training import PRESETS, SlotSpec, Trainer, concept_data

    config = PRESETS["small-world"]
    config = config if training_steps is None else replace(config, steps=training_steps)
    shown = {}
    trainer = Trainer(base)
    for owner, class_name in CAST[:count]:
        identity = concept_identity(identities, class_name)
        shown[class_name] = (ConceptRef(owner, class_name, 1), identity, concept_pictures(identity, identities))
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
    """Fuse the members by averaging and by gradient fusion, unless the folder has it already."""
    from mos.fusion import FusionConfig, FusionSource, fuse, read_fused, write_fused

    sources = [FusionSource(ref=member.ref, edlora=member.edlora) for member in members]
    fused: dict[str, Adapter] = {}
    for strategy in FUSIONS:
        folder = out / f"fused-{len(members)}-{strategy}"
        if not folder.exists():
            print(f"fusing {len(members)} concepts by {strategy}", flush=True)
            write_fused(fuse(base, sources, FusionConfig(strategy=strategy, measure=False)), folder)
        fused[strategy] = read_fused(folder, base.facts).adapter
    return Stage(members=members, fused=fused)
