"""Where a fusion's work happens: the protocol, and the executor that does it in this process."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from mos.base_model import BaseModel
from mos.edlora.adapter import Adapter
from mos.fusion.capture import fixed_threads
from mos.fusion.config import FusionConfig
from mos.fusion.problem import SiteProblem, SiteSolution
from mos.fusion.solver import solve_sites
from mos.fusion.source import FusionSource
from mos.fusion.stages import Stage, record_stage
from mos.fusion.statistics import StageStatistics


class FusionExecutor(Protocol):
    """Runs the two expensive parts of a stage. Both are pure: equal arguments give equal results anywhere."""

    def record(
        self, stage: Stage, sources: Sequence[FusionSource | None], upstream: Adapter | None
    ) -> Iterable[StageStatistics]:
        """Record every source (None: the generic prompts) by `record_stage`; results in the order of the sources."""
        ...

    def solve(self, stage: Stage, problems: Sequence[SiteProblem]) -> list[SiteSolution]:
        """Solve every problem by `solve_stage`; results in the order of the problems."""
        ...


class SerialExecutor:
    """Does everything in this process, one concept after another; holds one concept's statistics at a time."""

    def __init__(self, base: BaseModel, config: FusionConfig) -> None:
        self._base, self._config = base, config

    def record(
        self, stage: Stage, sources: Sequence[FusionSource | None], upstream: Adapter | None
    ) -> Iterable[StageStatistics]:
        """Record one source at a time, as the results are asked for."""
        return (record_stage(stage, self._base, source, upstream, self._config) for source in sources)

    def solve(self, stage: Stage, problems: Sequence[SiteProblem]) -> list[SiteSolution]:
        """Solve in this process, where the base lives."""
        del stage
        return solve_stage(problems, self._config, device=self._base.device.type)


def solve_stage(problems: Sequence[SiteProblem], config: FusionConfig, *, device: str = "cpu") -> list[SiteSolution]:
    """Solve some sites of a stage as the config says, on its number of threads."""
    with fixed_threads(config.threads):
        return solve_sites(problems, solver=config.solver, history=config.history, device=device)
