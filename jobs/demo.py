"""The whole marketplace on one machine: three owners train, publish, fuse and draw, and a page shows it.

Nothing here is prepared: the identities follow from a seed fixed before any training, their captions give
nothing of them away, the training, files, fusion and pictures are real, and the processes are Ray actors.
"""

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.pool import PoolOptions
from cluster.progress import Terminal
from cluster.runs import RunBook
from cluster.timeline import WorkInterval, measured, most_at_once, num_processes
from jobs.opening import open_base
from jobs.phases import PhaseCost, PhaseMeter, total
from jobs.specs import ConceptSpec, FusionSpec
from mos.concept import ConceptRef
from mos.errors import BadInputError

if TYPE_CHECKING:
    from PIL import Image

    from jobs.demo_pictures import DemoPictures
    from mos.base_model import BaseModel
    from mos.edlora.adapter import Adapter
    from mos.evaluation.claim import ClaimResult, ClaimSubject
    from mos.fusion import FusionSource
    from mos.smallworld.world import Identity
    from registry import Registry, Resolved

IDENTITY_SEED = 2026
"""Fixed before anything was trained; changing it changes who alice's robot, bob's cat and carol's house are."""

OWNERS = (("alice", "robot", "object"), ("bob", "cat", "pet"), ("carol", "house", "object"))
"""Owner, class and kind of the three concepts; each is named after its class."""

MARKER = ".mos-demo"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Size of the demo.

    Attributes:
        out: Folder of everything it makes; an earlier demo there is replaced.
        base: Folder or hub id of the base; empty for the small world.
        scorer: Folder of the CLIP scorer; empty for the small world's.
        ray_address: Ray to run on; None starts a private one.
        training: Options that differ from the base's recipe.
        pictures_per_concept: Paired pictures of each concept in every cell of the evaluation; 0 leaves it out.
        num_inference_steps: Denoising steps of the pictures on the page.
        num_workers: Processes for fusion and evaluation.
    """

    out: Path
    base: str = ""
    scorer: str = ""
    ray_address: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    pictures_per_concept: int = 36
    num_inference_steps: int = 20
    num_workers: int = 2


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One owner of the demo and what they have: an individual and pictures of it."""

    name: str
    class_word: str
    kind: str
    identity: "Identity"
    folder: Path
    pictures: tuple["Image.Image", ...]


def run_demo(config: DemoConfig, say: Callable[[str], None]) -> Path:
    """Run everything and write the page; returns its path.

    Raises:
        BadInputError: If the output folder holds something else.
        MosError: Whatever goes wrong on the way; no process is left behind then.
    """
    from cluster.session import connected
    from registry import Registry

    clean(config.out)
    demo = _Demo(config, say)
    with demo.meter.phase("pictures", "drawing eight pictures of each owner's own individual"):
        owners = [make_owner(config.out, *who) for who in OWNERS]
        base = open_base(config.base or None)
        registry = Registry.open(config.out / "registry", create=True, home=config.out / "home")
    with contextlib.ExitStack() as stack:
        with demo.meter.phase("start", "connecting to Ray" if config.ray_address else "starting a private Ray"):
            session = stack.enter_context(connected(config.ray_address))
            demo.meter.watch(session.processes)
        refs = demo.train(owners, registry, base)
        found, model = demo.fuse(refs, registry, base)
        pictures = demo.draw(base, owners, found, model)
        claim = demo.evaluate(base, owners, found, registry, model)
    return demo.report(owners, found, base, pictures, claim)


def clean(out: Path) -> None:
    """Make an empty output folder, replacing an earlier demo and nothing else.

    Raises:
        BadInputError: If the folder holds something that no demo made.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise BadInputError(f"{out}: not empty and not an earlier demo; choose another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def make_owner(out: Path, name: str, class_word: str, kind: str) -> Owner:
    """Draw an owner's pictures with captions and masks into their folder."""
    from mos.smallworld.concepts import concept_identity, concept_pictures

    identity = concept_identity(IDENTITY_SEED, class_word)
    folder = out / "owners" / name / class_word
    (folder / "masks").mkdir(parents=True)
    pictures = []
    for number, (picture, caption, mask) in enumerate(concept_pictures(identity, IDENTITY_SEED)):
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption + "\n")
        mask.save(folder / "masks" / f"{number}.png")
        pictures.append(picture)
    return Owner(
        name=name, class_word=class_word, kind=kind, identity=identity, folder=folder, pictures=tuple(pictures)
    )


class _Demo:
    """One demo on its way through its phases."""

    def __init__(self, config: DemoConfig, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say
        self.meter = PhaseMeter(list, say)
        self.intervals: list[WorkInterval] = []
        self._options = PoolOptions(num_workers=config.num_workers)

    def train(self, owners: Sequence[Owner], registry: "Registry", base: "BaseModel") -> list[ConceptRef]:
        """Three owners train at once, each in an actor of their own, and publish."""
        from jobs.train_concept import Bookkeeper, prepare, publish_staged, raise_if_failed, record_of, stage, train_on

        config = self._config
        book = RunBook(config.out / "home" / "runs")
        specs = [
            ConceptSpec(
                owner=owner.name,
                name=owner.class_word,
                class_word=owner.class_word,
                kind=owner.kind,
                pictures=str(owner.folder),
                options=dict(config.training),
                base=config.base,
                seed=IDENTITY_SEED,
                title=f"{owner.name}'s {owner.class_word}",
            )
            for owner in owners
        ]
        with self.meter.phase("train", "three owners train at once, each in an actor of their own"):
            prepared = [prepare(spec, base.facts) for spec in specs]
            for item in prepared:
                book.start(record_of(item, registry.url))
                stage(item, registry.url)
            keeper = Bookkeeper(book, Terminal())
            outcomes = train_on(prepared, registry.url, config.base, is_cancelled=book.is_cancelled, on_event=keeper)
            for item in prepared:
                raise_if_failed(outcomes[item.run_id])
                self.intervals.append(WorkInterval.from_dict(outcomes[item.run_id]["interval"]))
        with self.meter.phase("publish", "every owner verifies, signs and publishes"):
            trained = [publish_staged(item.run_id, item.spec, registry, item.spec_sha256) for item in prepared]
        self._say("published " + ", ".join(str(item.ref) for item in trained))
        return [item.ref for item in trained]

    def fuse(
        self, refs: Sequence[ConceptRef], registry: "Registry", base: "BaseModel"
    ) -> tuple[list["Resolved"], "Adapter"]:
        """Pull the three from the registry and fuse them on the actors."""
        from jobs.fuse_concepts import (
            fuse_on_ray,
            fusion_config,
            load_sources,
            lock_entries,
            resolve_all,
            write_outcome,
        )

        out = self._config.out / "fused"
        spec = FusionSpec(concepts=tuple(map(str, refs)), out=str(out), base=self._config.base)
        with self.meter.phase("fuse", "pulling the three and fusing them, layers in parallel"):
            found = resolve_all(registry, spec)
            sources = load_sources(registry, found, base)
            model, intervals = fuse_on_ray(
                base, self._config.base, sources, fusion_config(spec), self._options, say=self._say
            )
            write_outcome(model, out, lock_entries(found))
        self.intervals += intervals
        return found, model.adapter

    def draw(
        self, base: "BaseModel", owners: Sequence[Owner], found: Sequence["Resolved"], fused: "Adapter"
    ) -> "DemoPictures":
        """Every concept alone, and all three in one picture by regional sampling."""
        from jobs.demo_pictures import draw_pictures, overview

        with (
            self.meter.phase("draw", "each concept alone, and all three in one picture"),
            measured(self.intervals, "driver", "draw", "driver"),
        ):
            refs, folder = [item.ref for item in found], self._config.out / "pictures"
            drawn = draw_pictures(base, refs, fused, self._config.num_inference_steps, folder)
            overview([owner.pictures for owner in owners], drawn).save(folder / "overview.png")
            return drawn

    def evaluate(
        self,
        base: "BaseModel",
        owners: Sequence[Owner],
        found: Sequence["Resolved"],
        registry: "Registry",
        fused: "Adapter",
    ) -> "ClaimResult | None":
        """Score each concept before and after fusion, beside baselines, ceilings and floors."""
        from cluster.claim import measure_cells
        from jobs.fuse_concepts import load_sources
        from mos.evaluation.claim import ClaimConfig, conclude_claim

        config = self._config
        if config.pictures_per_concept == 0:
            return None
        with self.meter.phase("evaluate", f"{config.pictures_per_concept} pictures a concept, by every method"):
            outcomes, intervals = measure_cells(
                _cells(base, load_sources(registry, found, base), fused),
                config.base,
                config.scorer,
                _subjects(owners, found),
                ClaimConfig(pictures_per_concept=config.pictures_per_concept),
                self._options,
                say=self._say,
            )
        self.intervals += intervals
        return conclude_claim(outcomes)

    def report(
        self,
        owners: Sequence[Owner],
        found: Sequence["Resolved"],
        base: "BaseModel",
        pictures: "DemoPictures",
        claim: "ClaimResult | None",
    ) -> Path:
        """Write the page and the figures behind it."""
        from jobs.demo_report import write_report

        trainers = [item for item in self.intervals if item.role == "trainer"]
        solvers = [item for item in self.intervals if item.role == "solver"]
        costs = [*self.meter.costs, total(self.meter.costs)]
        path = write_report(
            self._config.out,
            owners=owners,
            found=found,
            base=base,
            pictures=pictures,
            claim=claim,
            intervals=self.intervals,
            costs=costs,
        )
        self._say(f"trainers at once: {most_at_once(trainers)}, solver processes: {num_processes(solvers)}")
        _say_costs(costs, self._say)
        if claim is not None:
            for verdict in claim.verdicts:
                answer = {True: "holds", False: "does not hold", None: "cannot be told"}[verdict.holds]
                self._say(f"{verdict.statement}: {answer} ({verdict.evidence})")
        self._say(f"look at {path}")
        return path


def _cells(
    base: "BaseModel", sources: Sequence["FusionSource"], fused: "Adapter"
) -> dict[str, Mapping[str, "Adapter"] | None]:
    """What draws every concept in each cell of the identity claim; None for what needs no concept."""
    from mos.evaluation.claim import AVERAGE, FLOOR_BASE, GRADIENT, MARKS, SINGLE, SUM
    from mos.fusion import FusionConfig, fuse

    names = [str(source.ref) for source in sources]
    averaged = fuse(base, sources, FusionConfig(strategy="average")).adapter
    summed = fuse(base, sources, FusionConfig(strategy="sum")).adapter
    return {
        GRADIENT: dict.fromkeys(names, fused),
        SINGLE: {str(source.ref): source.edlora.adapter(source.ref) for source in sources},
        AVERAGE: dict.fromkeys(names, averaged),
        SUM: dict.fromkeys(names, summed),
        FLOOR_BASE: None,
        **dict.fromkeys(MARKS),
    }


def _subjects(owners: Sequence[Owner], found: Sequence["Resolved"]) -> "list[ClaimSubject]":
    from mos.evaluation.claim import ClaimSubject

    by_name = {(owner.name, owner.class_word): owner for owner in owners}
    return [
        ClaimSubject(ref=item.ref, identity=owner.identity, references=owner.pictures)
        for item in found
        for owner in [by_name[item.ref.owner, item.ref.name]]
    ]


def _say_costs(costs: Sequence[PhaseCost], say: Callable[[str], None]) -> None:
    for cost in costs:
        say(
            f"{cost.name:<10} {cost.wall_s:7.1f} s wall  {cost.cpu_s:7.1f} CPU s  "
            f"{cost.peak_memory_bytes / 1e9:5.2f} GB at most"
        )


def machine() -> str:
    """This machine in a few words."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
