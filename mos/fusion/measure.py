"""The three figures of a fusion: fit, held-out error and drift, by concept and by layer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mos.base_model import BaseModel
from mos.edlora.adapter import weight_of
from mos.fusion.problem import LinearSolution, factored_energy, residual_energy
from mos.fusion.source import FusionSource
from mos.fusion.stages import Stage
from mos.fusion.statistics import Float64, SiteStatistics
from mos.fusion.store import StoredStatistics

FIGURES = ("fit", "held_out", "drift")


def measure_stage(
    stage: Stage,
    base: BaseModel,
    sources: Sequence[FusionSource],
    solutions: Mapping[str, LinearSolution],
    recorded: Sequence[StoredStatistics],
    generic: StoredStatistics | None,
) -> dict[str, Any]:
    """Compare the fused layers with what each concept wants and with what the base does.

    fit and held_out are ||(E - dW_i) X|| / ||dW_i X|| on concept i's fitted and held-out inputs: 0 is perfect, 1 is
    the base model. drift is ||E X|| / ||W0 X|| on held-out generic prompts: how far the output moves where no concept
    is mentioned.

    Returns:
        {"concepts": {name: {"fit", "held_out"}}, "drift": ..., "layers": {layer: {"fit", "held_out", "drift"}}};
        a figure is None where nothing was recorded for it.
    """
    sums = _Sums()
    for component, sites in stage.sites.items():
        for site, names in sites.items():
            key = f"{component}/{site}"
            for source, stored in zip(sources, recorded, strict=True):
                _add_concept(sums, source, component, names, solutions, stored.site(key), "fit")
                _add_concept(sums, source, component, names, solutions, stored.held_out(key), "held_out")
            checks = generic.held_out(key) if generic is not None else None
            for name in names if checks is not None else ():
                _add_drift(sums, base, component, name, solutions, checks)
    layers = [f"{component}/{name}" for component, name in stage.linears().values()]
    return {
        "concepts": {
            source.name: {figure: sums.ratio(figure, source.name) for figure in FIGURES[:2]} for source in sources
        },
        "drift": sums.ratio("drift", ""),
        "layers": {layer: {figure: sums.ratio(figure, layer) for figure in FIGURES} for layer in layers},
    }


class _Sums:
    """Error and reference energies by (figure, concept or layer)."""

    def __init__(self) -> None:
        self._error: dict[tuple[str, str], float] = defaultdict(float)
        self._reference: dict[tuple[str, str], float] = defaultdict(float)

    def add(self, figure: str, keys: Sequence[str], error: float, reference: float) -> None:
        for key in keys:
            self._error[figure, key] += error
            self._reference[figure, key] += reference

    def ratio(self, figure: str, key: str) -> float | None:
        reference = self._reference.get((figure, key), 0.0)
        if reference <= 0:
            return None
        return float(f"{(self._error[figure, key] / reference) ** 0.5:.6g}")


def _add_concept(
    sums: _Sums,
    source: FusionSource,
    component: str,
    names: Sequence[str],
    solutions: Mapping[str, LinearSolution],
    site: SiteStatistics | None,
    figure: str,
) -> None:
    if site is None:
        return
    for name in names:
        layer = f"{component}/{name}"
        up, down = wish(source, component, name, solutions[layer])
        error, own = residual_energy(solutions[layer], up, down, site.gram)
        sums.add(figure, (source.name, layer), error, own)


def wish(source: FusionSource, component: str, name: str, like: LinearSolution) -> tuple[Float64, Float64]:
    """(up, down) of what a concept wants of a layer, float64; of rank 0 where it does not tune the layer."""
    update = source.update(component, name)
    if update is None:
        return np.zeros((len(like.up), 0)), np.zeros((0, like.down.shape[1]))
    return update.up.double().numpy(), update.down.double().numpy()


def _add_drift(
    sums: _Sums,
    base: BaseModel,
    component: str,
    name: str,
    solutions: Mapping[str, LinearSolution],
    site: SiteStatistics | None,
) -> None:
    if site is None:
        return
    layer = f"{component}/{name}"
    solution = solutions[layer]
    weight = weight_of(base, component, name).detach().double().cpu().numpy()
    moved = factored_energy(solution.up, solution.down, site.gram)
    sums.add("drift", ("", layer), moved, float(np.einsum("ij,ij->", weight @ site.gram, weight)))
