"""What a table is made of: concepts trained in slots of one base, and models fused of them."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from jobs.table_config import FUSIONS, TableRun, fusion_config

if TYPE_CHECKING:
    from mos.base_model import BaseModel


def training_tasks(run: TableRun, num_slots: int) -> Iterator["TrainingTask"]:
    """Groups of concepts to train together: those that are not there yet, ED-LoRA first."""
    for seed in range(run.config.num_seeds):
        for row in reversed(run.config.singles):
            concepts = range(run.config.num_concepts)
            missing = [index for index in concepts if not run.concept_path(row, index, seed).exists()]
            for start in range(0, len(missing), num_slots):
                yield TrainingTask(run, row, seed, tuple(missing[start : start + num_slots]))


def fusion_tasks(run: TableRun) -> Iterator["FusionTask"]:
    """Fusions that are not there yet."""
    for seed in range(run.config.num_seeds):
        for row in run.config.fusions:
            for size in run.config.sizes:
                if not (run.fused_path(row, size, seed) / "fused.json").exists():
                    yield FusionTask(run, row, size, seed)


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
        from mos.evaluation.drawing import supports_bfloat16
        from mos.training import SlotSpec, Trainer

        trainer = Trainer(table_base(self.run.base))
        config = self.run.training(self.row, self.seed)
        config = replace(config, precision="bf16") if supports_bfloat16() else config
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
        """Fuse and write the model."""
        from mos.artifact import read_artifact
        from mos.fusion.fuse import fuse
        from mos.fusion.model import write_fused
        from mos.fusion.source import FusionSource

        base, single = table_base(self.run.base), FUSIONS[self.row][0]
        sources = [
            FusionSource(
                ref=self.run.config.ref(index, self.seed),
                edlora=read_artifact(self.run.concept_path(single, index, self.seed), base.facts),
            )
            for index in range(self.size)
        ]
        model = fuse(base, sources, fusion_config(self.row))
        path = self.run.fused_path(self.row, self.size, self.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fused(model, path)


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


@functools.cache
def table_base(name: str | None) -> "BaseModel":
    """One base a process: loading it takes longer than a fusion."""
    from jobs.opening import open_base

    return open_base(name)
