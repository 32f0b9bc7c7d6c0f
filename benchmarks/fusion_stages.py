"""In which stage does a fusion lose what its concepts show alone?

python -m benchmarks.fusion_stages --table runs/table [--size 14] [--rows 'ED-LoRA + gradient (lbfgs)'] [--pictures 12]

Takes the concepts and fused models of a table (`jobs.evaluate_table`) and draws every concept alone, with the fused
model, and with the fused model in which one stage's layers are the concept's own again. What a picture gains by that
is what the stage had lost, given that the other stages stay fused. Same prompts and first noise in every cell.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cluster.evaluation import open_scorer
from jobs.table_config import FUSIONS, TableConfig, TableRun
from jobs.table_tasks import table_base
from mos.artifact import read_artifact
from mos.edlora.adapter import Adapter
from mos.evaluation.claim import ClaimConfig, measure_cell
from mos.evaluation.intervals import Interval, paired_difference
from mos.evaluation.prompts import load_suite
from mos.evaluation.results import PictureScore, concept_of, summarise, values_of
from mos.fusion.model import read_fused
from mos.fusion.source import FusionSource
from mos.fusion.stages import Stage, plan_stages

ALONE = "alone"
METRICS = ("probe_identity", "probe_pattern", "probe_colour", "image_alignment_pairwise")


def with_own(fused: Adapter, own: Adapter, stage: Stage) -> Adapter:
    """The fused adapter with one stage's layers as the concept brought them; a layer it does not tune is the base's."""
    linears = {component: dict(updates) for component, updates in fused.linears.items()}
    for component, name in stage.linears().values():
        linears.get(component, {}).pop(name, None)
        if name in own.linears.get(component, {}):
            linears.setdefault(component, {})[name] = own.linears[component][name]
    return replace(fused, linears=linears)


class Study:
    """One training seed and size of a table that is there."""

    def __init__(self, run: TableRun, size: int, seed: int, claim: ClaimConfig) -> None:
        self.base, self.claim = table_base(run.base), claim
        self.scorer = open_scorer(None, use_probe=True, text_prefix=load_suite("small-world").text_prefix)
        self._run, self._size, self._seed = run, size, seed
        self._refs = [run.config.ref(index, seed) for index in range(size)]
        self._edloras = [
            read_artifact(run.concept_path("ED-LoRA", index, seed), self.base.facts) for index in range(size)
        ]
        self._subjects = [run.config.subject(index, seed) for index in range(size)]

    def cells(self, rows: Sequence[str]) -> Iterator[tuple[str, dict[str, Adapter]]]:
        """Name of a cell, and what draws each concept there."""
        own = {str(ref): edlora.adapter(ref) for ref, edlora in zip(self._refs, self._edloras, strict=True)}
        yield ALONE, own
        sources = [FusionSource(ref=ref, edlora=e) for ref, e in zip(self._refs, self._edloras, strict=True)]
        for row in rows:
            fused = read_fused(self._run.fused_path(row, self._size, self._seed), self.base.facts).adapter
            yield row, dict.fromkeys(own, fused)
            for stage in plan_stages(self.base, sources):
                mixed = {ref: with_own(fused, adapter, stage) for ref, adapter in own.items()}
                yield f"{row}, own {stage.name}", mixed

    def draw(self, name: str, adapters: dict[str, Adapter]) -> list[PictureScore]:
        """The scores of one cell."""
        return list(measure_cell(self.base, self.scorer, self._subjects, name, adapters, self.claim).rows)


def print_table(scores: Sequence[PictureScore]) -> None:
    """Every cell's means; what it loses of a concept alone, and gains over the whole fused model, over concepts."""
    decides = METRICS[0]
    print("| | " + " | ".join(METRICS) + " | identity lost | gained over the fused model |")
    print("|---" * (len(METRICS) + 3) + "|")
    fused = ""
    for cell in summarise(scores, by_concept=True):
        fused = cell.method if cell.method in FUSIONS else fused
        lost = _difference(scores, ALONE, cell.method, decides) if cell.method != ALONE else ""
        gained = _difference(scores, cell.method, fused, decides) if fused not in ("", cell.method) else ""
        means = " | ".join(str(cell.intervals[name]) for name in METRICS)
        print(f"| {cell.method} | {means} | {lost} | {gained} |")


def _difference(scores: Sequence[PictureScore], better: str, worse: str, metric: str) -> Interval:
    left, right = (values_of((row for row in scores if row.method == name), metric) for name in (better, worse))
    pairs = list(left)
    return paired_difference(
        [left[pair] for pair in pairs], [right[pair] for pair in pairs], groups=[concept_of(pair) for pair in pairs]
    )


def main() -> None:
    """Draw every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="folder of jobs.evaluate_table")
    parser.add_argument("--size", type=int, default=14)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each concept")
    parser.add_argument("--rows", nargs="+", default=["ED-LoRA + gradient (lbfgs)"])
    parser.add_argument("--pictures", type=int, default=12, help="of each concept and cell")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = TableRun(arguments.table, TableConfig())
    scores: list[PictureScore] = []
    for seed in range(arguments.seeds):
        study = Study(run, arguments.size, seed, ClaimConfig(pictures_per_concept=arguments.pictures))
        for name, adapters in study.cells(arguments.rows):
            scores += study.draw(name, adapters)
    print_table(scores)


if __name__ == "__main__":
    main()
