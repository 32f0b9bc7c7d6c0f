"""Gradient fusion on Ray: recording parallel over concepts, solving parallel over bins of layers.

The driver of `mos.fusion` keeps the order of the stages; what it hands out is pure, so a lost worker is
replaced and its piece done again, with the same bits as before.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray

from cluster import metrics
from cluster.machine import device
from cluster.pool import Call, PoolOptions, WorkerPool
from cluster.timeline import WorkInterval, measured

if TYPE_CHECKING:
    from mos.edlora.adapter import Adapter
    from mos.fusion import FusionConfig, FusionSource, SiteProblem, SiteSolution, Stage, StageStatistics


class FusionWorker:
    """The body of a fusion actor: records one concept of a stage, or solves one bin of its layers.

    Args:
        name: Readable name for timelines.
        base: Folder or hub id of the base; empty for the small world. Loaded when first needed.
        config: Options of the fusion.
    """

    def __init__(self, *, name: str, base: str, config: "FusionConfig") -> None:
        self._name, self._base_path, self._config = name, base, config
        self._base: Any = None
        # Ray maps arguments read-only into memory; torch warns of that, and nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)

    def place(self) -> int:
        """Answer with the process id: the worker has its resources."""
        return os.getpid()

    def record(
        self, stage: "Stage", source: "FusionSource | None", upstream: "Adapter | None"
    ) -> tuple["StageStatistics", WorkInterval]:
        """Record one concept, or the generic prompts for None, in one stage."""
        from mos.base_model import load_base
        from mos.fusion import record_stage

        intervals: list[WorkInterval] = []
        label = f"{stage.name.value}: {source.name if source else 'generic prompts'}"
        with measured(intervals, "recorder", label, self._name):
            self._base = self._base or load_base(self._base_path or None, device=device())
            statistics = record_stage(stage, self._base, source, upstream, self._config)
        return statistics, intervals[0]

    def solve(
        self, stage: "Stage", problems: "Sequence[SiteProblem]", label: str
    ) -> tuple["list[SiteSolution]", WorkInterval]:
        """Solve one bin of layers."""
        from mos.fusion import solve_stage

        intervals: list[WorkInterval] = []
        with measured(intervals, "solver", f"{stage.name.value}: {label}", self._name):
            solutions = solve_stage(problems, self._config, device=device())
        metrics.add("mos_layers_done_total", {"stage": stage.name.value}, sum(len(item.linears) for item in solutions))
        return solutions, intervals[0]


class RayFusionExecutor:
    """Spreads a fusion over actors of one Ray; use it in a `with` block.

    Args:
        base: What the workers load; must be the driver's base.
        config: Options of the fusion; the driver's.
        options: Number of workers and what each asks for.
        bins_per_worker: Bins of layers each worker gets; more even out the end, fewer save calls.
        on_interval: Called with each piece of work, as soon as it is done.
        on_retry: Called with a sentence when a piece is done again.
    """

    def __init__(
        self,
        base: str,
        config: "FusionConfig",
        options: PoolOptions,
        *,
        bins_per_worker: int = 2,
        on_interval: Callable[[WorkInterval], None] = lambda _: None,
        on_retry: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._num_bins = bins_per_worker * options.num_workers
        self._on_interval = on_interval
        self.pool = WorkerPool("fusion", FusionWorker, {"base": base, "config": config}, options, on_retry=on_retry)
        self._stored: dict[str, Any] = {}

    def __enter__(self) -> "RayFusionExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def record(
        self, stage: "Stage", sources: "Sequence[FusionSource | None]", upstream: "Adapter | None"
    ) -> "list[StageStatistics]":
        """Record every source on whichever worker is free; the generic prompts, which take longest, first."""
        shared = ray.put(upstream)
        order = sorted(range(len(sources)), key=lambda index: sources[index] is not None)
        calls = [
            Call("record", (stage, self._reference(source), shared), f"record {source.name if source else 'generic'}")
            for source in (sources[index] for index in order)
        ]
        results = self._results(calls)
        by_index = dict(zip(order, results, strict=True))
        return [by_index[index] for index in range(len(sources))]

    def solve(self, stage: "Stage", problems: "Sequence[SiteProblem]") -> "list[SiteSolution]":
        """Pack the sites into bins of equal cost and solve the bins on the workers."""
        from mos.fusion import plan_bins, site_cost

        by_site = {problem.site: problem for problem in problems}
        bins = plan_bins({site: site_cost(problem) for site, problem in by_site.items()}, self._num_bins)
        calls = []
        for number, sites in enumerate(bins, start=1):
            label = f"bin {number} of {len(bins)}, {len(sites)} sites"
            calls.append(Call("solve", (stage, [by_site[site] for site in sites], label), f"solve {label}"))
        solved = {solution.site: solution for part in self._results(calls) for solution in part}
        return [solved[problem.site] for problem in problems]

    def _results(self, calls: list[Call]) -> list[Any]:
        answers = self.pool.map(calls, on_result=lambda _, answer: self._on_interval(answer[1]))
        return [result for result, _ in answers]

    def _reference(self, source: "FusionSource | None") -> Any:
        if source is None:
            return None
        if source.name not in self._stored:
            self._stored[source.name] = ray.put(source)
        return self._stored[source.name]
