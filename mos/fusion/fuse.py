"""The driver of a fusion: three stages, each a barrier, recorded by concept and solved by site."""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter
from mos.edlora.lora import LowRank
from mos.fusion.config import FusionConfig
from mos.fusion.executor import FusionExecutor, SerialExecutor
from mos.fusion.measure import measure_stage
from mos.fusion.model import FusedModel, SourceRecord
from mos.fusion.problem import LinearProblem, LinearSolution, SiteProblem, regularised
from mos.fusion.source import FusionSource, prepare_sources, vocabulary_of
from mos.fusion.stages import Stage, plan_stages
from mos.fusion.statistics import Float64, tensor_of
from mos.fusion.store import StatisticsStore, StoredStatistics, adapter_digest, opened_store, statistics_key
from mos.fusion.strategies import merge_weights

Progress = Callable[[str], None]
Updates = dict[str, dict[str, LowRank]]


def fuse(
    base: BaseModel,
    sources: Sequence[FusionSource],
    config: FusionConfig | None = None,
    *,
    executor: FusionExecutor | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> FusedModel:
    """Fuse concepts into one update of the base with the words of all of them.

    Same base, concepts and config give the same bytes on CPU, whatever the order of the concepts, the executor and
    the state of the cache.

    Args:
        base: What the concepts were trained on; its weights are untouched afterwards.
        sources: The concepts, any number, in any order.
        config: Solver, regularisation, recording.
        executor: Where recording and solving run; None is this process.
        progress: Called with one line whenever something is done.
        cache: Directory where single concepts' statistics are kept for later fusions; None keeps nothing.

    Raises:
        BadInputError, ConflictError, BaseMismatchError, FusionError: As `prepare_sources`, and if statistics or a
            solution are not finite; names concept and layer. Nothing has been written then.
    """
    config = FusionConfig() if config is None else config
    report = progress or (lambda _line: None)
    ready, clippings = prepare_sources(base, sources, config)
    for item in clippings:
        report(
            f"{item.concept}: its {item.component} updates, {item.norm:.3g} times as large as the base's layers, "
            f"are scaled by {item.factor:.3g}"
        )
    vocabulary = vocabulary_of(ready)
    stages: dict[str, Any] = {}
    times: dict[str, dict[str, float]] = {}
    if config.strategy == "gradient":
        chosen = executor or SerialExecutor(base, config)
        with opened_store(cache) as store:
            run = _Run(base, ready, config, chosen, store, report, clipped={item.concept for item in clippings})
            for stage in plan_stages(base, ready):
                stages[stage.name], times[stage.name] = run.stage(stage)
            updates = run.updates
    else:
        updates = merge_weights(base, ready, config)
        report(f"{config.strategy}: merged {sum(map(len, updates.values()))} layers of {len(ready)} concepts")
    return FusedModel(
        adapter=Adapter(linears=updates, vocabulary=vocabulary),
        sources=tuple(SourceRecord.of(source) for source in ready),
        config=config,
        base_name=base.facts.name,
        base_fingerprint=dict(base.facts.fingerprint),
        report={"stages": stages, "clipped": [dataclasses.asdict(item) for item in clippings]},
        times=times,
    )


def measure_fusion(
    base: BaseModel,
    sources: Sequence[FusionSource],
    updates: Updates,
    config: FusionConfig | None = None,
    *,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Fit, held-out error and drift of any update on the inputs that gradient fusion would have recorded for it.

    The strategies that look at no input are measured like those that do: every stage records what its layers see
    once the stages before carry `updates`.

    Args:
        base: What the concepts were trained on.
        sources: The concepts.
        updates: What became of them: component -> canonical linear name -> update.
        config: What is recorded.
        cache: As in `fuse`.

    Returns:
        As `FusedModel.report["stages"]`.
    """
    config = FusionConfig() if config is None else config
    ready, _ = prepare_sources(base, sources, config)
    with opened_store(cache) as store:
        run = _Run(base, ready, config, SerialExecutor(base, config), store, lambda _line: None)
        return {stage.name: run.measure(stage, updates) for stage in plan_stages(base, ready)}


class _Run:
    """One gradient fusion on its way through the stages."""

    def __init__(
        self,
        base: BaseModel,
        sources: Sequence[FusionSource],
        config: FusionConfig,
        executor: FusionExecutor,
        store: StatisticsStore,
        progress: Progress,
        clipped: Collection[str] = (),
    ) -> None:
        self._base, self._sources, self._config = base, sources, config
        self._clipped = clipped
        self._executor, self._store, self._progress = executor, store, progress
        self.updates: Updates = {}

    def stage(self, stage: Stage) -> tuple[dict[str, Any], dict[str, float]]:
        """Record, solve and measure one stage; returns its figures and its seconds."""
        marks = [time.monotonic()]
        recorded, generic, spared = self._recorded(stage)
        marks.append(time.monotonic())
        solutions = self._solved(stage, self._sources, recorded, generic)
        marks.append(time.monotonic())
        figures = measure_stage(stage, self._base, self._sources, solutions, recorded, generic)
        if self._clipped:
            figures["without_clipped"] = self._without_clipped(stage, figures, recorded, generic)
        self._take(stage, solutions)
        marks.append(time.monotonic())
        names = ("record_seconds", "solve_seconds", "measure_seconds")
        seconds = {name: marks[index + 1] - marks[index] for index, name in enumerate(names)}
        self._progress(_summary(stage, figures, seconds))
        return figures, seconds | {"spared_seconds": spared}

    def _solved(
        self,
        stage: Stage,
        sources: Sequence[FusionSource],
        recorded: Sequence[StoredStatistics],
        generic: StoredStatistics | None,
    ) -> dict[str, LinearSolution]:
        problems = [
            build_problem(component, site, names, sources, recorded, generic, self._config, stage)
            for component, sites in stage.sites.items()
            for site, names in sites.items()
        ]
        solved = self._executor.solve(stage, problems)
        return {name: linear for site in solved for name, linear in site.linears.items()}

    def _without_clipped(
        self,
        stage: Stage,
        figures: Mapping[str, Any],
        recorded: Sequence[StoredStatistics],
        generic: StoredStatistics | None,
    ) -> dict[str, dict[str, float | None]]:
        """The same figures of the other concepts had the clipped ones been left out of this stage."""
        pairs = zip(self._sources, recorded, strict=True)
        honest = [(source, stored) for source, stored in pairs if source.name not in self._clipped]
        if not honest:
            return {}
        sources, statistics = [source for source, _ in honest], [stored for _, stored in honest]
        stage = _tuned_by(sources, stage)
        solutions = self._solved(stage, sources, statistics, generic)
        without: dict[str, dict[str, float | None]] = measure_stage(
            stage, self._base, sources, solutions, statistics, generic
        )["concepts"]
        for name, values in without.items():
            beside = ", ".join(
                f"{figure.replace('_', ' ')} {figures['concepts'][name][figure]} with, {value} without"
                for figure, value in values.items()
            )
            self._progress(f"{stage.name}: {name} beside {', '.join(sorted(self._clipped))}: {beside}")
        return without

    def measure(self, stage: Stage, updates: Updates) -> dict[str, Any]:
        """Record one stage for given updates instead of solving it."""
        recorded, generic, _ = self._recorded(stage)
        solutions = {
            key: LinearSolution(
                up=updates[component][name].up.double().numpy(), down=updates[component][name].down.double().numpy()
            )
            for key, (component, name) in stage.linears().items()
        }
        figures = measure_stage(stage, self._base, self._sources, solutions, recorded, generic)
        self._take(stage, solutions)
        return figures

    def _recorded(self, stage: Stage) -> tuple[list[StoredStatistics], StoredStatistics | None, float]:
        """The concepts' statistics, those of the generic prompts, and the CPU seconds the cached ones once took."""
        needs_generic = self._config.rule(stage.name).generic_weight > 0 or self._config.measure
        stored, spared = self._all_recorded(stage, [*self._sources, *([None] if needs_generic else [])])
        count = len(self._sources)
        return stored[:count], stored[count] if needs_generic else None, spared

    def _all_recorded(
        self, stage: Stage, wanted: Sequence[FusionSource | None]
    ) -> tuple[list[StoredStatistics], float]:
        is_first = not self.updates
        upstream = None if is_first and stage.name == "text-encoder" else self._adapter()
        digest = "" if upstream is None else adapter_digest(upstream)
        keys = [statistics_key(stage, self._base, source, digest, self._config) for source in wanted]
        found = {key: self._store.find(key) for key in keys}
        cached = [item for item in found.values() if item is not None]
        if cached:
            self._progress(f"{stage.name}: {len(cached)} of {len(keys)} recordings from the cache")
        missing = [(key, source) for key, source in zip(keys, wanted, strict=True) if found[key] is None]
        results = self._executor.record(stage, [source for _, source in missing], upstream) if missing else ()
        for (key, source), statistics in zip(missing, results, strict=True):
            found[key] = self._store.put(key, statistics)
            name = "generic prompts" if source is None else source.name
            self._progress(f"{stage.name}: recorded {name} ({statistics.seconds:.1f} CPU s)")
        stored = [found[key] for key in keys]
        return [item for item in stored if item is not None], sum(item.seconds for item in cached)

    def _adapter(self) -> Adapter:
        return Adapter(linears=self.updates, vocabulary=vocabulary_of(self._sources))

    def _take(self, stage: Stage, solutions: Mapping[str, LinearSolution]) -> None:
        for key, (component, name) in stage.linears().items():
            self.updates.setdefault(component, {})[name] = LowRank(
                up=tensor_of(solutions[key].up).float(), down=tensor_of(solutions[key].down).float()
            )


def _tuned_by(sources: Sequence[FusionSource], stage: Stage) -> Stage:
    """The stage without layers that none of these concepts tunes."""
    sites: dict[str, dict[str, tuple[str, ...]]] = {}
    for component, by_site in stage.sites.items():
        for site, names in by_site.items():
            kept = tuple(name for name in names if any(source.update(component, name) for source in sources))
            if kept:
                sites.setdefault(component, {})[site] = kept
    return Stage(name=stage.name, sites=sites)


def build_problem(
    component: str,
    site: str,
    names: Sequence[str],
    sources: Sequence[FusionSource],
    recorded: Sequence[StoredStatistics],
    generic: StoredStatistics | None,
    config: FusionConfig,
    stage: Stage,
) -> SiteProblem:
    """Sum one site's statistics over the concepts, holding one concept's Gram matrix at a time."""
    key, rule = f"{component}/{site}", config.rule(stage.name)
    gram: Float64 | None = None
    num_rows = 0
    ups: dict[str, list[npt.NDArray[np.floating[Any]]]] = {name: [] for name in names}
    projected: dict[str, list[Float64]] = {name: [] for name in names}
    for source, stored in zip(sources, recorded, strict=True):
        own = stored.site(key)
        gram = own.gram if gram is None else gram + own.gram
        num_rows += own.num_rows
        for name in names:
            update = source.update(component, name)
            if update is not None:
                ups[name].append(update.up.detach().cpu().numpy())
                projected[name].append(update.down.double().numpy() @ own.gram)
    assert gram is not None
    common = generic.site(key).gram if generic is not None and rule.generic_weight > 0 else None
    matrix = regularised(gram, generic=common, generic_weight=rule.generic_weight, ridge=rule.ridge)
    linears = {
        f"{component}/{name}": LinearProblem(ups=tuple(ups[name]), projected=tuple(projected[name])) for name in names
    }
    return SiteProblem(
        site=key, matrix=np.ascontiguousarray(matrix), num_rows=num_rows, linears=linears, steps=rule.steps
    )


def _summary(stage: Stage, figures: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    def mean(figure: str) -> str:
        values = [item[figure] for item in figures["concepts"].values() if item[figure] is not None]
        return f"{sum(values) / len(values):.3f}" if values else "-"

    drift = "-" if figures["drift"] is None else f"{figures['drift']:.4f}"
    return (
        f"{stage.name}: {len(stage.linears())} layers, fit {mean('fit')}, held out {mean('held_out')}, drift {drift} "
        f"({seconds['record_seconds']:.1f} s recording, {seconds['solve_seconds']:.1f} s solving)"
    )
