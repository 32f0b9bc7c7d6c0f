"""The identity claim on Ray: one cell, one method, a call; as many at once as there are workers."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray

from cluster.pool import Call, PoolOptions, WorkerPool
from cluster.timeline import WorkInterval, measured

if TYPE_CHECKING:
    from mos.edlora.adapter import Adapter
    from mos.evaluation.claim import CellOutcome, ClaimConfig, ClaimSubject


class ClaimWorker:
    """The body of an evaluation actor.

    Args:
        name: Readable name for timelines.
        base: Folder or hub id of the base; empty for the small world.
        scorer: Folder of the CLIP scorer; empty for the small world's.
        subjects: The concepts with their identities and training pictures.
        config: Size of the experiment.
    """

    def __init__(
        self, *, name: str, base: str, scorer: str, subjects: "Sequence[ClaimSubject]", config: "ClaimConfig"
    ) -> None:
        self._name, self._base_path, self._scorer_path = name, base, scorer
        self._subjects, self._config = subjects, config
        self._loaded: Any = None
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)

    def place(self) -> int:
        """Answer with the process id: the worker has its resources."""
        return os.getpid()

    def measure(self, method: str, adapters: "Mapping[str, Adapter] | None") -> tuple["CellOutcome", WorkInterval]:
        """Draw and score one cell."""
        from mos.evaluation.claim import measure_cell

        intervals: list[WorkInterval] = []
        with measured(intervals, "evaluator", method, self._name):
            base, scorer = self._load()
            outcome = measure_cell(base, scorer, self._subjects, method, adapters, self._config)
        return outcome, intervals[0]

    def _load(self) -> Any:
        from mos.base_model import load_base
        from mos.evaluation.scorer import ClipScorer
        from mos.evaluation.scoring import PictureScorer
        from mos.smallworld.assets import load_probe, scorer_path

        if self._loaded is None:
            clip = ClipScorer.load(self._scorer_path or scorer_path())
            self._loaded = load_base(self._base_path or None), PictureScorer(clip=clip, probe=load_probe())
        return self._loaded


def measure_cells(
    cells: "Mapping[str, Mapping[str, Adapter] | None]",
    base: str,
    scorer: str,
    subjects: "Sequence[ClaimSubject]",
    config: "ClaimConfig",
    options: PoolOptions,
    *,
    say: Callable[[str], None],
) -> tuple[list["CellOutcome"], list[WorkInterval]]:
    """Measure every cell on the connected Ray.

    Args:
        cells: Method -> what draws each concept (None: no adapter at all).
        base: What the workers load.
        scorer: The CLIP scorer; empty for the small world's.
        subjects: The concepts.
        config: Size of the experiment.
        options: Number of workers and what each asks for.
        say: Called with a line when a cell is repeated.

    Returns:
        The outcomes in the order of `cells`, and who did what when.
    """
    arguments = {"base": base, "scorer": scorer, "subjects": subjects, "config": config}
    with WorkerPool("evaluation", ClaimWorker, arguments, options, on_retry=say) as pool:
        calls = [Call("measure", (method, ray.put(adapters)), method) for method, adapters in cells.items()]
        answers = pool.map(calls, on_result=lambda call, _: say(f"evaluated {call.label}"))
    return [outcome for outcome, _ in answers], [interval for _, interval in answers]
