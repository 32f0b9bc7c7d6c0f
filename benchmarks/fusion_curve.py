"""Quality against the number of concepts, for every strategy and solver, on trained concepts of the small world.

python -m benchmarks.fusion_curve --out runs/curve                            14 concepts, sizes 1, 3, 5, 10, 14
python -m benchmarks.fusion_curve --out runs/curve --concepts DIR --docs docs/fusion
python -m benchmarks.fusion_curve --out runs/curve --sizes 1,3 --pictures 2 --training-steps 20     to try it

Trains the concepts (or takes those of `--concepts`, a folder of `jobs.evaluate_table`), fuses the first n of them by
every strategy, draws every fused concept by the same prompts and first noise as the concept alone, and scores the
pictures. What is there is not made again: concepts, fused models and blocks of pictures are files named by what they
are. `--docs` writes the Parquet table, the figure and the grids before and after.
"""

import argparse
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.fusion_cost import cpu_seconds
from cluster.evaluation_rows import ScoredPicture, block_bytes, read_block
from jobs.opening import open_base
from jobs.table_config import TableConfig, TableRun
from jobs.table_tasks import perform, training_tasks
from mos.artifact import read_artifact
from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter
from mos.errors import ConflictError
from mos.evaluation.claim import ClaimConfig, ClaimSubject, claim_shots, claim_truths
from mos.evaluation.drawing import FLOOR_BASE, MARKS, rendered, sampled, supports_bfloat16
from mos.evaluation.scorer import ClipScorer
from mos.evaluation.scoring import PictureScorer
from mos.fusion import FusedModel, FusionConfig, FusionSource, fuse, measure_fusion, read_fused, write_fused
from mos.smallworld.assets import load_probe, scorer_path
from mos.tensorfile import write_atomically

ROW = "ED-LoRA"
SINGLE = "single"
METHODS: dict[str, dict[str, Any]] = {
    "average": {"strategy": "average"},
    "sum": {"strategy": "sum"},
    "svd-average": {"strategy": "svd-average"},
    "ties": {"strategy": "ties"},
    "dare": {"strategy": "dare"},
    "gradient, lbfgs": {"solver": "lbfgs"},
    "gradient, lbfgs-preconditioned": {"solver": "lbfgs-preconditioned"},
    "gradient, exact": {"solver": "exact"},
}
"""Curve -> options of the fusion beside the defaults."""


@dataclass(frozen=True, kw_only=True)
class CurveConfig:
    """Size of the curve.

    Attributes:
        sizes: How many concepts are fused: always the first ones.
        pictures: Of each fused concept, by every method.
        training_steps: Of a concept; None is the preset's number.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance.
    """

    sizes: tuple[int, ...] = (1, 3, 5, 10, 14)
    pictures: int = 8
    training_steps: int | None = None
    num_inference_steps: int = 12
    guidance_scale: float = 3.0

    @property
    def claim(self) -> ClaimConfig:
        """The same as the size of an identity claim, whose prompts and seeds are drawn."""
        return ClaimConfig(
            pictures_per_concept=self.pictures,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
        )

    @property
    def table(self) -> TableConfig:
        """The same as a table, whose concepts are used."""
        return TableConfig(
            num_concepts=max(self.sizes),
            num_seeds=1,
            sizes=(),
            singles=(ROW,),
            fusions=(),
            training_steps=self.training_steps,
        )


class Curve:
    """One run in a folder: what is missing is made, what is there is read."""

    def __init__(self, folder: Path, config: CurveConfig, base: str | None, concepts: Path | None) -> None:
        self.folder, self.config = folder, config
        self.table = TableRun(concepts or folder, config.table, base)
        self._base_name = base
        self._base: BaseModel | None = None

    @property
    def base(self) -> BaseModel:
        """The base, loaded when first needed."""
        if self._base is None:
            self._base = open_base(self._base_name)
        return self._base

    def settle(self) -> None:
        """Note settings and base, or refuse to go on with others.

        Raises:
            ConflictError: If the folder was begun with others; sizes may be added.
        """
        settings = {
            "base": dict(self.base.facts.fingerprint),
            "fusion": FusionConfig().to_json(),
            "pictures": self.config.pictures,
            "steps": self.config.num_inference_steps,
            "guidance": self.config.guidance_scale,
        }
        path = self.folder / "curve.json"
        if path.exists() and json.loads(path.read_text()) != settings:
            raise ConflictError(f"{path}: was begun with another base or other settings; choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")

    def subjects(self, count: int) -> list[ClaimSubject]:
        """The first concepts: who they are and what they were trained on."""
        return [self.config.table.subject(index, 0) for index in range(count)]

    def sources(self, count: int) -> list[FusionSource]:
        """The first trained concepts."""
        return [
            FusionSource(
                ref=self.config.table.ref(index, 0),
                edlora=read_artifact(self.table.concept_path(ROW, index, 0), self.base.facts),
            )
            for index in range(count)
        ]

    def fused(self, method: str, size: int) -> FusedModel:
        """The first `size` concepts fused by a method, with its three figures whatever the strategy."""
        directory = self.folder / "fused" / f"{file_name(method)}-{size:02d}"
        if not (directory / "fused.json").exists():
            sources, config = self.sources(size), FusionConfig(**METHODS[method])
            seconds, model = cpu_seconds(lambda: fuse(self.base, sources, config))
            stages = model.report["stages"] or measure_fusion(self.base, sources, model.adapter.linears, config)
            model = replace(model, report={**model.report, "stages": stages, "cpu_seconds": seconds})
            write_fused(model, directory)
        return read_fused(directory, self.base.facts)

    def block(self, method: str, size: int, scorer: PictureScorer) -> list[ScoredPicture]:
        """Scored pictures of one method at one size, each concept's by the same prompts and first noise."""
        path = self.folder / "blocks" / f"{file_name(method)}-{size:02d}.parquet"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, [self._drawn(method, size, scorer)])
        return read_block(path.read_bytes(), path.name)

    def _drawn(self, method: str, size: int, scorer: PictureScorer) -> bytes:
        subjects, claim = self.subjects(size), self.config.claim
        shots, rows, images = claim_shots(claim), [], []
        adapter_of = self._adapters(method, size)
        for truth, subject in zip(claim_truths(subjects, claim), subjects, strict=True):
            if method in MARKS:
                drawn = rendered(self.base, method, subject.identity, shots)
            else:
                adapter = adapter_of.get(truth.ref)
                drawn = sampled(self.base, adapter, truth, shots, claim.sampling, bfloat16=supports_bfloat16())
            rows += scorer.rows(truth, shots, drawn, method=method, suite="small-world", model=f"{method} {size}")
            images += drawn
        return block_bytes(rows, images)

    def _adapters(self, method: str, size: int) -> dict[str, Adapter]:
        sources = [] if method in (*MARKS, FLOOR_BASE) else self.sources(size)
        if method == SINGLE:
            return {source.name: source.edlora.adapter(source.ref) for source in sources}
        fused = self.fused(method, size).adapter if sources else None
        return {source.name: fused for source in sources} if fused is not None else {}


def file_name(method: str) -> str:
    """A method's name as part of a file name."""
    return "".join(character if character.isalnum() or character == "-" else "-" for character in method).replace(
        "--", "-"
    )


def cells(config: CurveConfig, methods: Collection[str]) -> Iterator[tuple[str, int]]:
    """Every method at every size, small sizes first; marks and single concepts once, for all concepts."""
    for method in (SINGLE, FLOOR_BASE, *MARKS):
        if method in methods:
            yield method, max(config.sizes)
    for size in config.sizes:
        for method in METHODS:
            if method in methods:
                yield method, size


def run(
    curve: Curve, slots: int, methods: Collection[str] = (SINGLE, FLOOR_BASE, *MARKS, *METHODS)
) -> dict[tuple[str, int], list[ScoredPicture]]:
    """Make what is missing, and return every cell."""
    perform(training_tasks(curve.table, slots), 1, lambda line: print(line, flush=True))
    scorer = PictureScorer(clip=ClipScorer.load(scorer_path()), probe=load_probe())
    result = {}
    for method, size in cells(curve.config, methods):
        seconds, result[method, size] = cpu_seconds(lambda: curve.block(method, size, scorer))  # noqa: B023
        print(f"{method}, {size} concepts: {len(result[method, size])} pictures ({seconds:.1f} CPU s)", flush=True)
    return result


def main() -> None:
    """Run, print the table, and write the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; go on there")
    parser.add_argument("--concepts", type=Path, help="folder of trained concepts; default --out")
    parser.add_argument("--docs", type=Path, help="folder for table, figure and grids")
    parser.add_argument("--base", default=None, help="default: the small world")
    parser.add_argument("--sizes", default="1,3,5,10,14")
    parser.add_argument("--pictures", type=int, default=8, help="of each concept, by every method")
    parser.add_argument("--training-steps", type=int)
    parser.add_argument("--slots", type=int, default=7, help="concepts trained together")
    parser.add_argument("--only-train", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = CurveConfig(
        sizes=tuple(sorted(int(size) for size in arguments.sizes.split(","))),
        pictures=arguments.pictures,
        training_steps=arguments.training_steps,
    )
    curve = Curve(arguments.out, config, arguments.base, arguments.concepts)
    if arguments.only_train:
        perform(training_tasks(curve.table, arguments.slots), 1, lambda line: print(line, flush=True))
        return
    curve.settle()
    from benchmarks.fusion_figures import summary, write_documents

    found = run(curve, arguments.slots)
    table = summary(curve, found)
    print_summary(table)
    if arguments.docs is not None:
        write_documents(curve, found, table, arguments.docs)


def print_summary(table: Sequence[Any]) -> None:
    """One line a method and size: identity kept, and what it costs elsewhere."""
    chosen = ("probe_identity", "probe_pattern", "probe_backdrop", "image_alignment_pairwise", "text_alignment")
    by_cell: dict[tuple[str, int], dict[str, float]] = {}
    for row in table:
        by_cell.setdefault((row.method, row.num_concepts), {})[row.metric] = row.mean
    print(f"{'method':<32} {'n':>3} " + " ".join(f"{name[-14:]:>14}" for name in chosen))
    for (method, size), values in by_cell.items():
        print(f"{method:<32} {size:>3} " + " ".join(f"{values.get(name, float('nan')):>14.3f}" for name in chosen))


if __name__ == "__main__":
    main()
