"""The paper's table on the small world: train, fuse, draw, score and report, from one resumable command.

    python -m jobs.evaluate_table --out runs/table                 # 14 concepts, 3 training seeds
    python -m jobs.evaluate_table --out runs/table --concepts 3 --seeds 1 --sizes 3

What is there is not made again: concepts and fused models are files named by what they are, pictures and
scores are blocks of an evaluation in the registry under the same folder.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mos.concept import ConceptRef
from mos.errors import BadInputError, ConflictError, MosError

if TYPE_CHECKING:
    from cluster.evaluation import EvaluationJob
    from mos.base_model import BaseModel
    from mos.edlora.adapter import Adapter
    from mos.evaluation.batch import EvaluatedModel
    from mos.evaluation.claim import ClaimSubject
    from mos.smallworld.world import Identity

SINGLES: Mapping[str, str] = {
    "textual inversion": "small-world-textual-inversion",
    "P+": "small-world-p-plus",
    "LoRA": "small-world-lora",
    "ED-LoRA": "small-world",
}
"""Row of the table -> training preset."""

FUSIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "LoRA + average": ("LoRA", {"strategy": "average"}),
    "ED-LoRA + average": ("ED-LoRA", {"strategy": "average"}),
    "ED-LoRA + sum": ("ED-LoRA", {"strategy": "sum"}),
    "ED-LoRA + gradient (lbfgs)": ("ED-LoRA", {"strategy": "gradient", "solver": "lbfgs"}),
    "ED-LoRA + gradient (preconditioned)": ("ED-LoRA", {"strategy": "gradient", "solver": "lbfgs-preconditioned"}),
    "ED-LoRA + gradient (exact)": ("ED-LoRA", {"strategy": "gradient", "solver": "exact"}),
}
"""Row of the table -> the single concepts it fuses, and how."""

SCALE_ZERO = "ED-LoRA, scale 0"


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Size and settings of the table.

    Attributes:
        num_concepts: Concepts, the world's classes in turn.
        num_seeds: Trainings of each concept.
        sizes: How many concepts are fused.
        suite: Prompts: a suite's name or a TOML file.
        prompt_seeds: Pictures of each of the suite's prompts.
        num_inference_steps: Denoising steps.
        guidance_scale: Guidance.
        training_steps: Steps of every training; None is the presets' own.
        singles: Rows of `SINGLES` that are trained.
        fusions: Rows of `FUSIONS` that are made.
    """

    num_concepts: int = 14
    num_seeds: int = 3
    sizes: tuple[int, ...] = (3, 5, 10, 14)
    suite: str = "small-world"
    prompt_seeds: int = 2
    num_inference_steps: int = 16
    guidance_scale: float = 3.0
    training_steps: int | None = None
    singles: tuple[str, ...] = field(default_factory=lambda: tuple(SINGLES))
    fusions: tuple[str, ...] = field(default_factory=lambda: tuple(FUSIONS))

    def __post_init__(self) -> None:
        unknown = sorted({*self.singles} - {*SINGLES} | {*self.fusions} - {*FUSIONS})
        if unknown:
            raise BadInputError(f"table: no row {', '.join(unknown)}; there are {', '.join([*SINGLES, *FUSIONS])}")
        lacking = sorted({FUSIONS[row][0] for row in self.fusions} - {*self.singles})
        if lacking:
            raise BadInputError(f"table: a fusion needs the single concepts of {', '.join(lacking)}")
        if not 1 <= self.num_concepts <= 99 or self.num_seeds < 1:
            raise BadInputError("table: expected 1 to 99 concepts and at least one training seed")
        if any(not 2 <= size <= self.num_concepts for size in self.sizes):
            raise BadInputError(f"table: sizes {self.sizes}: expected 2 to {self.num_concepts} concepts")

    def ref(self, index: int, seed: int) -> ConceptRef:
        """Concept `index` (from 0) of training seed `seed`: every owner has one concept, every seed is a version."""
        return ConceptRef(f"o{index + 1:02d}", self.class_name(index), seed + 1)

    def class_name(self, index: int) -> str:
        """The class of concept `index`."""
        from mos.smallworld.world import CLASSES

        return CLASSES[index % len(CLASSES)]

    def identity(self, index: int) -> "Identity":
        """The held-out individual that concept `index` is, the same for every training seed and method."""
        from mos.smallworld.world import CLASSES, concept_identity

        return concept_identity(100 + index // len(CLASSES), self.class_name(index))


@dataclass(frozen=True)
class TableRun:
    """A table in a folder, on a base; without a scorer of its own the small world's judges, with its probe."""

    folder: Path
    config: TableConfig
    base: str | None = None
    scorer: str | None = None

    def concept_path(self, row: str, index: int, seed: int) -> Path:
        """Where one trained concept lies."""
        return self.folder / "concepts" / _plain(row) / f"{index + 1:02d}-seed{seed}.safetensors"

    def fused_path(self, row: str, size: int, seed: int) -> Path:
        """Where one fused model lies."""
        return self.folder / "fused" / _plain(row) / f"{size:02d}-seed{seed}"

    def settle(self) -> None:
        """Note the settings, or refuse to go on with others.

        Raises:
            ConflictError: If the folder was begun with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "table.json"
        settings = json.dumps(
            {"base": self.base, "scorer": self.scorer, **asdict(self.config)}, indent=1, sort_keys=True
        )
        if path.exists() and path.read_text(encoding="utf-8") != settings:
            raise ConflictError(f"{path}: was begun with other settings; choose another --out or the same settings")
        path.write_text(settings, encoding="utf-8")

    def training_tasks(self, num_slots: int) -> Iterator["TrainingTask"]:
        """Groups of concepts to train together: those that are not there yet."""
        for seed in range(self.config.num_seeds):
            for row in self.config.singles:
                missing = [
                    index
                    for index in range(self.config.num_concepts)
                    if not self.concept_path(row, index, seed).exists()
                ]
                for start in range(0, len(missing), num_slots):
                    yield TrainingTask(self, row, seed, tuple(missing[start : start + num_slots]))

    def fusion_tasks(self) -> Iterator["FusionTask"]:
        """Fusions that are not there yet."""
        for seed in range(self.config.num_seeds):
            for row in self.config.fusions:
                for size in self.config.sizes:
                    if not (self.fused_path(row, size, seed) / "fused.json").exists():
                        yield FusionTask(self, row, size, seed)


@dataclass(frozen=True)
class TrainingTask:
    """A few concepts of one row and seed, trained in slots of one base."""

    run: TableRun
    row: str
    seed: int
    indices: tuple[int, ...]

    def __str__(self) -> str:
        return f"train {self.row}, seed {self.seed}, concepts {', '.join(str(index + 1) for index in self.indices)}"

    def __call__(self) -> None:
        """Train and write the concepts."""
        from mos.artifact import write_artifact
        from mos.training import PRESETS, SlotSpec, Trainer

        trainer = Trainer(_base(self.run.base))
        config = replace(PRESETS[SINGLES[self.row]], seed=self.seed)
        if self.run.config.training_steps is not None:
            config = replace(config, steps=self.run.config.training_steps)
        keys = {
            trainer.admit(SlotSpec(key=str(index), data=self._data(index), config=config)): index
            for index in self.indices
        }
        while trainer.keys:
            for report in trainer.step():
                if report.is_done:
                    path = self.run.concept_path(self.row, keys[report.key], self.seed)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_artifact(trainer.finish(report.key), path)

    def _data(self, index: int) -> Any:
        from mos.smallworld.concepts import concept_pictures
        from mos.training import concept_data

        name = self.run.config.class_name(index)
        pictures = concept_pictures(self.run.config.identity(index), 100 + index)
        return concept_data(pictures, name=name, class_word=name)


@dataclass(frozen=True)
class FusionTask:
    """One fused model."""

    run: TableRun
    row: str
    size: int
    seed: int

    def __str__(self) -> str:
        return f"fuse {self.size} concepts, {self.row}, seed {self.seed}"

    def __call__(self) -> None:
        """Fuse and write the model; recorded statistics are kept for the other solvers."""
        from mos.artifact import read_artifact
        from mos.fusion.config import FusionConfig
        from mos.fusion.fuse import fuse
        from mos.fusion.model import write_fused
        from mos.fusion.source import FusionSource

        base, (single, options) = _base(self.run.base), FUSIONS[self.row]
        sources = [
            FusionSource(
                ref=self.run.config.ref(index, self.seed),
                edlora=read_artifact(self.run.concept_path(single, index, self.seed), base.facts),
            )
            for index in range(self.size)
        ]
        values: dict[str, Any] = dict(options)
        model = fuse(base, sources, FusionConfig(measure=False, **values))
        path = self.run.fused_path(self.row, self.size, self.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fused(model, path)


def table_job(run: TableRun) -> "EvaluationJob":
    """Every model of the table as one evaluation in the folder's registry."""
    from cluster.evaluation import EvaluationJob, open_scorer
    from mos.evaluation.batch import BatchConfig, marks, scorer_digest, untrained_base
    from mos.evaluation.claim import ClaimConfig, claim_truths
    from mos.evaluation.drawing import supports_bfloat16
    from mos.evaluation.prompts import load_suite

    base, suite = _base(run.base), load_suite(run.config.suite)
    truths = {truth.ref: truth for truth in claim_truths(list(_subjects(run.config)), ClaimConfig())}
    models, adapters = _models(run, base)
    first = [str(run.config.ref(index, 0)) for index in range(run.config.num_concepts)]
    use_probe = run.scorer is None
    scorer = open_scorer(run.scorer, use_probe=False, text_prefix=suite.text_prefix)
    (run.folder / "registry").mkdir(exist_ok=True)
    return EvaluationJob(
        config=BatchConfig(
            suite=suite,
            num_seeds=run.config.prompt_seeds,
            num_inference_steps=run.config.num_inference_steps,
            guidance_scale=run.config.guidance_scale,
            batch_size=20,
            bfloat16=supports_bfloat16(),
            base_digest=",".join(f"{name}:{value}" for name, value in sorted(base.facts.fingerprint.items())),
            scorer_digest=scorer_digest(scorer) + ("+probe" if use_probe else ""),
        ),
        models=(*models, untrained_base(first), *marks(first)),
        truths=truths,
        adapters=adapters,
        registry_url=str(run.folder / "registry"),
        base=run.base,
        scorer=run.scorer,
        use_probe=use_probe,
    )


def _models(run: TableRun, base: "BaseModel") -> "tuple[list[EvaluatedModel], dict[str, Adapter]]":
    """All single and fused models with their weights."""
    from mos.artifact import read_artifact
    from mos.evaluation.batch import EvaluatedModel, adapter_digest
    from mos.fusion.model import read_fused

    models: list[EvaluatedModel] = []
    adapters: dict[str, Adapter] = {}

    def add(name: str, method: str, adapter: "Adapter", scale: float = 1.0) -> None:
        adapters[name] = adapter
        concepts = tuple(words.ref for words in adapter.vocabulary)
        digest = adapter_digest(adapter)
        models.append(
            EvaluatedModel(name=name, method=method, concepts=concepts, digest=digest, source=name, scale=scale)
        )

    config = run.config
    for seed in range(config.num_seeds):
        for row in config.singles:
            for index in range(config.num_concepts):
                ref = config.ref(index, seed)
                adapter = read_artifact(run.concept_path(row, index, seed), base.facts).adapter(ref)
                add(f"{row} {ref}", row, adapter)
                if row == "ED-LoRA":
                    add(f"{SCALE_ZERO} {ref}", SCALE_ZERO, adapter, 0.0)
        for row in config.fusions:
            for size in config.sizes:
                adapter = read_fused(run.fused_path(row, size, seed), base.facts).adapter
                add(f"{row} of {size}, seed {seed}", fused_method(row, size), adapter)
    return models, adapters


def fused_method(row: str, size: int) -> str:
    """The method's name of a fused row."""
    return f"{row} · {size}"


def _subjects(config: TableConfig) -> "Iterator[ClaimSubject]":
    from mos.evaluation.claim import ClaimSubject
    from mos.smallworld.concepts import concept_pictures

    for index in range(config.num_concepts):
        identity = config.identity(index)
        references = [picture for picture, _, _ in concept_pictures(identity, 100 + index)]
        for seed in range(config.num_seeds):
            yield ClaimSubject(ref=config.ref(index, seed), identity=identity, references=references)


def perform(tasks: Iterable[Callable[[], None]], num_workers: int, say: Callable[[str], None]) -> None:
    """Run tasks here, or in processes of their own; the first that fails ends the command."""
    listed = list(tasks)
    started = time.monotonic()
    if num_workers == 1:
        for number, task in enumerate(listed, start=1):
            task()
            say(f"{number} of {len(listed)}: {task} ({time.monotonic() - started:.0f} s)")
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        running = [(task, pool.submit(task)) for task in listed]
        try:
            for number, (task, future) in enumerate(running, start=1):
                future.result()
                say(f"{number} of {len(listed)}: {task} ({time.monotonic() - started:.0f} s)")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def evaluate(run: TableRun, num_workers: int, say: Callable[[str], None]) -> tuple[str, list[str]]:
    """Draw and score what is missing; returns the evaluation's digest and the names of its blocks.

    The store may hold further blocks: those of concepts that were lost and trained again to other bytes.
    """
    from cluster.evaluation import run_evaluation, run_serially

    job = table_job(run)
    blocks = [block.name for block in job.blocks()]

    def on_block(done: int, total: int) -> None:
        say(f"block {done} of {total}")

    if num_workers == 1:
        return run_serially(job, on_block=on_block).digest, blocks
    from cluster.session import local_ray

    with local_ray(num_cpus=num_workers):
        return run_evaluation(job, num_drawers=num_workers, on_block=on_block).digest, blocks


@functools.cache
def _base(name: str | None) -> "BaseModel":
    """One base a process: loading it takes longer than a fusion."""
    from jobs.opening import open_base

    return open_base(name)


def _plain(row: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in row.lower().replace("+", "plus")).strip("-")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the table; go on there.")
@click.option("--concepts", "num_concepts", default=14, show_default=True)
@click.option("--seeds", "num_seeds", default=3, show_default=True, help="Trainings of each concept.")
@click.option("--sizes", default="3,5,10,14", show_default=True, help="How many concepts are fused.")
@click.option("--suite", default="small-world", show_default=True, help="Prompts: a suite's name or a TOML file.")
@click.option("--prompt-seeds", default=2, show_default=True, help="Pictures of each prompt.")
@click.option("--steps", "num_inference_steps", default=16, show_default=True, help="Denoising steps.")
@click.option("--guidance", "guidance_scale", default=3.0, show_default=True)
@click.option("--training-steps", type=int, default=None, help="Steps of every training; default the presets'.")
@click.option("--singles", default=",".join(SINGLES), show_default=True, help="Rows to train.")
@click.option("--fusions", default=",".join(FUSIONS), show_default=True, help="Rows to fuse.")
@click.option("--slots", "num_slots", default=7, show_default=True, help="Concepts trained together in a process.")
@click.option("--workers", "num_workers", default=2, show_default=True, help="Processes.")
@click.option("--base", default=None, help="Base model; default the small world.")
@click.option("--scorer", default=None, help="Another transformers CLIPModel; the probe then stays out.")
@click.option("--docs", type=click.Path(path_type=Path), default=None, help="Also write the table as this page.")
def main(
    out: Path, sizes: str, singles: str, fusions: str, num_slots: int, num_workers: int, base: str | None,
    scorer: str | None, docs: Path | None, **values: Any,
) -> None:  # fmt: skip
    """Make the paper's table on the small world, or go on with it."""
    from jobs.evaluate_claims import write_claims

    def say(line: str) -> None:
        click.echo(line, err=True)

    def names(text: str) -> Sequence[str]:
        return tuple(name.strip() for name in text.split(",") if name.strip())

    try:
        config = TableConfig(
            sizes=tuple(int(size) for size in names(sizes)), singles=tuple(names(singles)),
            fusions=tuple(names(fusions)), **values,
        )  # fmt: skip
        run = TableRun(out, config, base, scorer)
        run.settle()
        perform(run.training_tasks(num_slots), num_workers, say)
        perform(run.fusion_tasks(), num_workers, say)
        digest, blocks = evaluate(run, num_workers, say)
        click.echo(str(write_claims(run, digest, blocks, docs)))
    except MosError as error:
        click.echo(f"mos: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
