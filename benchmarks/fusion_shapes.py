"""Every solver at every shape of SD 1.5: seconds, memory, and error on what was fitted and what was not.

The reference takes all its steps on at most 5120 rows a concept, which gives its errors and the number of its
evaluations; its time and memory are those of an evaluation on all rows. All steps on all rows would take an hour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.fusion_cost import Cost, cost_of, cpu_seconds
from benchmarks.fusion_problems import SD15, Case, Shape, case_of, inputs_of
from benchmarks.results_file import Row
from mos.fusion.config import FusionConfig
from mos.fusion.problem import LinearProblem, SiteProblem
from mos.fusion.reference import solve_reference
from mos.fusion.solver import solve_sites
from mos.fusion.statistics import GramAccumulator

CONCEPTS = 3
QUALITY_ROWS = 5120
"""All that SD 1.5 has of the widest shape, where fewer rows than the width would be another problem."""
SOLVERS = ("lbfgs", "lbfgs-preconditioned", "exact")
RULES = {
    "text": FusionConfig().text_encoder,
    "cross": FusionConfig().cross_attention,
    "spatial": FusionConfig().spatial,
}


@dataclass(frozen=True, kw_only=True)
class ReferenceRun:
    """The reference on one linear of a shape.

    Attributes:
        update: What it found on the rows of the case, [out, in].
        evaluations: How often it evaluated the loss on the way.
        closure_s: CPU seconds of one evaluation with gradient on all rows of the shape.
        product_s: CPU seconds of one product of that size.
        peak_mb: Most memory on all rows, its copy of them included.
    """

    update: np.ndarray
    evaluations: int
    closure_s: float
    product_s: float
    peak_mb: float | None

    @property
    def seconds(self) -> float:
        """CPU seconds of one linear on all rows."""
        return self.evaluations * self.closure_s


def run_reference(shape: Shape, case: Case, rows: Sequence[torch.Tensor]) -> ReferenceRun:
    """Take all steps on the case's rows, and time an evaluation on all `rows`."""
    deltas = [up @ down for up, down in zip(case.ups[0], case.downs[0], strict=True)]
    update, evaluations = counted_reference(case.fitted, deltas, steps=shape.steps)
    cost, closure, product = reference_closure(rows, deltas)
    return ReferenceRun(
        update=update.double().numpy(),
        evaluations=evaluations,
        closure_s=closure,
        product_s=product,
        peak_mb=cost.peak_mb,
    )


def counted_reference(
    rows: Sequence[torch.Tensor], deltas: Sequence[torch.Tensor], *, steps: int
) -> tuple[torch.Tensor, int]:
    """What the reference finds, and how often it evaluated the loss."""
    evaluations = 0
    original = torch.nn.functional.mse_loss

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal evaluations
        evaluations += 1
        return original(*arguments, **options)

    torch.nn.functional.mse_loss = counted
    try:
        return solve_reference(rows, deltas, steps=steps), evaluations
    finally:
        torch.nn.functional.mse_loss = original


def reference_closure(rows: Sequence[torch.Tensor], deltas: Sequence[torch.Tensor]) -> tuple[Cost, float, float]:
    """(Cost of three steps, CPU seconds of one evaluation with gradient, of one product of its size).

    Three steps of the solver are timed and divided by its evaluations, which are counted; one product of targets,
    made before the first step, is taken off.
    """
    product = _product_seconds(torch.cat(list(rows)), deltas[0])
    cost, (_, evaluations) = cost_of(lambda: counted_reference(rows, deltas, steps=3))
    return cost, (cost.cpu_s - product) / evaluations, product


def _product_seconds(rows: torch.Tensor, weight: torch.Tensor) -> float:
    return min(cpu_seconds(lambda: rows @ weight.T)[0] for _ in range(3))


def accumulated(rows: Sequence[torch.Tensor], *, precise: bool, chunks: int) -> tuple[float, list[np.ndarray]]:
    """CPU seconds of streaming every concept's rows into its Gram matrix, and the matrices."""

    def stream(concept: torch.Tensor) -> np.ndarray:
        accumulator = GramAccumulator(precise=precise)
        for part in concept.chunk(chunks):
            accumulator.add(part[None])
        return accumulator.statistics().gram

    return cpu_seconds(lambda: [stream(concept) for concept in rows])


def shape_rows() -> list[Row]:
    """Every solver at every shape of SD 1.5, and the whole model by the number of its sites."""
    result: list[Row] = []
    totals = dict.fromkeys(("reference", *SOLVERS, "accumulation"), 0.0)
    references: dict[tuple[int, int, int], ReferenceRun] = {}
    for shape in SD15:
        case = case_of(shape, CONCEPTS, rows=min(shape.rows, QUALITY_ROWS))
        inputs = inputs_of(shape)
        rows = case.fitted if shape.rows <= QUALITY_ROWS else [inputs.rows(shape.rows) for _ in range(CONCEPTS)]
        key = (shape.width, shape.out, shape.rows)
        if key not in references:
            references[key] = run_reference(shape, case, rows)
        is_spatial = shape.stage.startswith("spatial")
        seconds, _ = accumulated(rows, precise=not is_spatial, chunks=20 if is_spatial else 1)
        del rows
        found = _shape(shape, case, references[key], seconds)
        result += found.rows
        for name, value in found.seconds.items():
            totals[name] += value * shape.sites
    return result + _total_rows(totals) + mean_rows(result)


@dataclass(frozen=True, kw_only=True)
class _ShapeFound:
    rows: list[Row]
    seconds: dict[str, float]


def _shape(shape: Shape, case: Case, reference: ReferenceRun, accumulation: float) -> _ShapeFound:
    """The rows of one shape; figures of its first linear, seconds of all linears that share the site."""
    rule = RULES[shape.stage.split()[0]]
    problem = case.site(generic_weight=rule.generic_weight, ridge=rule.ridge)
    optimum = _objective(problem, *_factors(problem, "exact"))
    how = (
        f"{shape.rows} rows a concept, {CONCEPTS} concepts, {shape.linears} linears of the site, {shape.steps} steps; "
        f"the model has {shape.sites} such sites"
    )
    if shape.rows > QUALITY_ROWS:
        how += f"; errors, and the reference's steps, on {QUALITY_ROWS} rows a concept"
    identity = np.eye(shape.out)
    updates: dict[str, tuple[np.ndarray, np.ndarray]] = {"reference": (identity, reference.update)}
    seconds = {"reference": reference.seconds * shape.linears, "accumulation": accumulation}
    peaks = {"reference": reference.peak_mb}
    for solver in SOLVERS:
        cost, solved = cost_of(lambda: solve_sites([problem], solver=solver))  # type: ignore[arg-type] # noqa: B023
        linear = solved[0].linears["linear-0"]
        updates[solver] = (linear.up, linear.down)
        seconds[solver] = cost.cpu_s
        peaks[solver] = None if cost.peak_mb is None else cost.peak_mb + _given_mb(problem)
    rows = [Row(name=f"{shape.name}: accumulating the Gram matrices", value=accumulation, unit="CPU s", how=how)]
    for name, (up, down) in updates.items():
        figures = case.figures(up @ down)
        gap = (_objective(problem, up, down) - optimum) / abs(optimum)
        rows += [
            Row(name=f"{shape.name}: {name}", value=seconds[name], unit="CPU s", how=how),
            Row(name=f"{shape.name}: {name}, most memory", value=peaks[name], unit="MB", how=how),
            *(
                Row(name=f"{shape.name}: {name}, {figure.replace('_', ' ')}", value=figures[figure],
                    unit="of the concepts' own", how=how)
                for figure in ("fit", "held_out", "drift")
            ),
            Row(name=f"{shape.name}: {name}, gap to the optimum", value=gap, unit="ratio",
                goal="<= 1e-5" if name == "lbfgs-preconditioned" else "", how=how + _OPTIMUM),
        ]  # fmt: skip
    return _ShapeFound(rows=rows + _ratio_rows(shape, case, updates, seconds, how), seconds=seconds)


_OPTIMUM = "; of the regularised loss, which the reference does not know, in float64"


def _ratio_rows(
    shape: Shape,
    case: Case,
    updates: dict[str, tuple[np.ndarray, np.ndarray]],
    seconds: dict[str, float],
    how: str,
) -> list[Row]:
    reference, default = (case.figures(up @ down) for up, down in (updates["reference"], updates["lbfgs"]))
    result = [
        Row(name=f"{shape.name}: {figure.replace('_', ' ')}, default / reference",
            value=default[figure] / reference[figure], unit="ratio", goal="<= 1.0", how=how)
        for figure in ("held_out", "drift")
    ]  # fmt: skip
    for solver in SOLVERS:
        alone, whole = seconds[solver], seconds[solver] + seconds["accumulation"]
        result += [
            Row(name=f"{shape.name}: reference / {solver}", value=seconds["reference"] / alone, unit="ratio", how=how),
            Row(name=f"{shape.name}: reference / (accumulation + {solver})", value=seconds["reference"] / whole,
                unit="ratio", how=how),
        ]  # fmt: skip
    return result


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """The default's errors in the reference's, each the mean over all linears of SD 1.5 of its shape's."""
    values = {row.name: row.value for row in rows}
    result = []
    for figure, goal in (("fit", ""), ("held out", "<= 1.0"), ("drift", "<= 1.0")):
        default, reference = (
            sum((values[f"{shape.name}: {name}, {figure}"] or 0.0) * shape.sites * shape.linears for shape in SD15)
            for name in ("lbfgs", "reference")
        )
        name = f"all 176 linears of SD 1.5: {figure}, default / reference"
        how = f"means over the linears, {CONCEPTS} concepts, {FusionConfig().solver} with the default's regularisation"
        result.append(Row(name=name, value=default / reference, unit="ratio", goal=goal, how=how))
    return result


def _total_rows(totals: dict[str, float]) -> list[Row]:
    how = f"sum over sites of the figures above, {CONCEPTS} concepts, without running the model"
    result = [
        Row(name=f"all 176 linears of SD 1.5: {name}", value=value, unit="CPU s", how=how)
        for name, value in totals.items()
    ]
    for solver in SOLVERS:
        value = totals["reference"] / (totals[solver] + totals["accumulation"])
        name = f"all 176 linears of SD 1.5: reference / (accumulation + {solver})"
        result.append(Row(name=name, value=value, unit="ratio", how=how))
    return result


def _factors(problem: SiteProblem, solver: str) -> tuple[np.ndarray, np.ndarray]:
    linear = solve_sites([problem], solver=solver)[0].linears["linear-0"]  # type: ignore[arg-type]
    return linear.up, linear.down


def _objective(problem: SiteProblem, up: np.ndarray, down: np.ndarray) -> float:
    """tr(E A E^T) - 2 tr(E C^T) of E = up @ down, on the first linear."""
    linear: LinearProblem = problem.linears["linear-0"]
    wish = np.concatenate(linear.ups, axis=1).astype(np.float64) @ np.concatenate(linear.projected)
    update = up @ down
    return float(np.einsum("ij,ij->", update @ problem.matrix, update) - 2 * np.einsum("ij,ij->", update, wish))


def _given_mb(problem: SiteProblem) -> float:
    linears = problem.linears.values()
    arrays = [problem.matrix, *(array for linear in linears for array in (*linear.ups, *linear.projected))]
    return sum(array.nbytes for array in arrays) / 1e6
