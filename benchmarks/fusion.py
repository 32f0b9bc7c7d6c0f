"""Gradient fusion against the paper's solver: time, memory, and error on what was fitted and what was not.

python -m benchmarks.fusion              everything, one thread, about ten CPU minutes
python -m benchmarks.fusion memory gpu   some parts, printed and not written; with --update, in place of their old rows
python -m benchmarks.fusion --memory N   peak memory of the last stage's problems with N concepts (used by the above)

The reference multiplies every input row in every evaluation; where all its steps would take hours, its time is that
of three evaluations times the paper's number of steps, which leaves out what else it does.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch

from benchmarks.fusion_cost import cpu_seconds, peak_mb, reset_peak
from benchmarks.fusion_problems import RANK, SD15, Shape, case_of, gram_of, inputs_of, site_of
from benchmarks.fusion_shapes import CONCEPTS, RULES, accumulated, reference_closure, shape_rows
from benchmarks.results_file import RESULTS, Row, print_table, write_results
from mos.fusion.config import FusionConfig
from mos.fusion.problem import SiteProblem
from mos.fusion.solver import solve_sites

MEASURED = "; measured at "


def accumulation_rows() -> list[Row]:
    """The goal: a 320-wide site, 4096 tokens x 20 steps x 3 concepts, all three linears, accumulation included."""
    shape = next(shape for shape in SD15 if shape.name == "spatial qkv 320->320")
    inputs = inputs_of(shape)
    rows = [inputs.rows(shape.rows) for _ in range(CONCEPTS)]
    small = case_of(shape, CONCEPTS, rows=512)
    deltas = [up @ down for up, down in zip(small.ups[0], small.downs[0], strict=True)]
    _, closure, product = reference_closure(rows, deltas)
    reference = closure * shape.steps * shape.linears
    accumulate, grams = accumulated(rows, precise=False, chunks=20)
    solve, _ = cpu_seconds(lambda: solve_sites([site_of(small, grams, ridge=RULES["spatial"].ridge)]))
    how = "4096 tokens x 20 steps x 3 concepts, q, k and v; reference: closure x 50 steps x 3 linears"
    return [
        Row(name="320 site: reference closure / its three products", value=closure / (3 * product), unit="ratio",
            goal="<= 1.5", how="one evaluation with gradient over 245,760 rows; one product timed alone"),
        Row(name="320 site: reference", value=reference, unit="CPU s", how=how),
        Row(name="320 site: accumulating the Gram matrices", value=accumulate, unit="CPU s", how=how),
        Row(name="320 site: lbfgs, 50 steps", value=solve, unit="CPU s", how=how),
        Row(name="320 site: reference / (accumulation + lbfgs)", value=reference / (accumulate + solve), unit="ratio",
            goal=">= 100", how=how),
        Row(name="320 site: reference / lbfgs", value=reference / solve, unit="ratio", how=how),
    ]  # fmt: skip


def memory_rows() -> list[Row]:
    """Memory of the last stage, the largest, for 3, 14 and 100 concepts."""
    found = {count: _measured_memory(count) for count in (3, 14, 100)}
    how = "64 sites of SD 1.5's last stage, float64; a process of its own each"
    result = [
        Row(name=f"{count} concepts: sums and projections", value=values["statistics"], unit="MB", how=how)
        for count, values in found.items()
    ]
    result += [
        Row(name=f"{count} concepts: peak of the process, solved", value=values["peak"], unit="MB", how=how)
        for count, values in found.items()
    ]
    for name, key, goal in (
        ("statistics, a concept more", "statistics", "<= 3.0"),
        ("peak of the process, a concept more", "peak", ""),
    ):
        growth = (found[100][key] - found[3][key]) / 97
        note = "(100 concepts - 3 concepts) / 97; " + ("its own up matrices included; " if key == "peak" else "")
        result.append(Row(name=name, value=growth, unit="MB", goal=goal, how=note + how))
    return result


def _measured_memory(count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.fusion", "--memory", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def print_memory(count: int) -> None:
    """Build and solve (exactly) the last stage's problems of `count` concepts; print megabytes as JSON.

    The mark is set back first: it would otherwise start from what the parent process once held.
    """
    reset_peak()
    generator = np.random.default_rng(0)
    problems = []
    for shape in (shape for shape in SD15 if shape.stage.startswith("spatial")):
        inputs = inputs_of(shape)
        gram = gram_of(inputs.rows(2 * shape.width))
        names = [f"{shape.name} {index}" for index in range(shape.sites)]
        problems += [_grown_problem(name, shape, gram, count, generator) for name in names]
    size = sum(problem.matrix.nbytes for problem in problems)
    size += sum(rows.nbytes for problem in problems for linear in problem.linears.values() for rows in linear.projected)
    for problem in problems:
        solve_sites([problem], solver="exact")
    print(json.dumps({"statistics": size / 1e6, "peak": peak_mb()}))


def _grown_problem(
    name: str, shape: Shape, gram: np.ndarray, count: int, generator: np.random.Generator
) -> SiteProblem:
    from mos.fusion.problem import LinearProblem, regularised

    total = np.zeros_like(gram)
    linears: dict[str, tuple[list[Any], list[Any]]] = {f"linear-{index}": ([], []) for index in range(shape.linears)}
    for _ in range(count):
        total += gram
        for ups, projected in linears.values():
            ups.append(generator.standard_normal((shape.out, RANK)).astype(np.float32))
            projected.append(generator.standard_normal((RANK, shape.width)) @ gram)
    return SiteProblem(
        site=name,
        matrix=regularised(total, ridge=1e-3),
        num_rows=count,
        linears={key: LinearProblem(ups=tuple(u), projected=tuple(p)) for key, (u, p) in linears.items()},
        steps=shape.steps,
    )


def pipeline_rows() -> list[Row]:
    """The whole fusion of three concepts on the small base, where its weights are there."""
    from mos.base_model import load_base
    from mos.errors import NotFoundError
    from mos.fusion import fuse
    from mos.random_concept import random_concept

    name, how = "small base, 3 concepts, whole fusion", "random updates of rank 4; recording, solving, measuring"
    try:
        base = load_base()
    except NotFoundError:
        return [Row(name=name, value=None, unit="CPU s", goal="<= 10", how=how + "; no small base here")]
    sources = [random_concept(base, f"owner/concept-{index}@1", index, rank=RANK) for index in range(CONCEPTS)]
    result = []
    for solver in ("lbfgs", "exact"):
        seconds, _ = cpu_seconds(lambda: fuse(base, sources, FusionConfig(solver=solver)))  # noqa: B023
        goal = "<= 10" if solver == "lbfgs" else ""
        result.append(Row(name=f"{name}, {solver}", value=seconds, unit="CPU s", goal=goal, how=how))
    return result


def gpu_rows() -> list[Row]:
    """Fourteen concepts on a full-size SD 1.5 with random weights, on a GPU where there is one."""
    how = "random weights and updates, 3 latent seeds x 20 steps at 512 px, recording and solving; the paper: 30-50 min"
    name = "14 concepts on full-size SD 1.5, one GPU"
    if not torch.cuda.is_available():
        return [Row(name=name, value=None, unit="s", goal="<= 60", how=how + "; no GPU here")]
    from mos.fusion import fuse
    from mos.random_base import random_base
    from mos.random_concept import random_concept

    base = random_base(size="full")
    sources = [random_concept(base, f"owner/concept-{index}@1", index, rank=RANK) for index in range(14)]
    base.to(device="cuda")
    started = time.monotonic()
    fuse(base, sources, FusionConfig(solver="exact", measure=False))
    torch.cuda.synchronize()
    return [Row(name=name, value=time.monotonic() - started, unit="s", goal="<= 60", how=how)]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "accumulation": accumulation_rows,
    "shapes": shape_rows,
    "memory": memory_rows,
    "pipeline": pipeline_rows,
    "gpu": gpu_rows,
}


def kept_rows(replaced: Collection[str]) -> list[Row]:
    """The rows of the results file that were not measured again; each names the commit it was measured at."""
    path = RESULTS / "fusion.json"
    document = json.loads(path.read_text()) if path.exists() else {"rows": []}
    names = {item.name for item in dataclasses.fields(Row)}
    rows = [Row(**{name: value for name, value in row.items() if name in names}) for row in document["rows"]]
    note = MEASURED + str(document.get("commit"))
    return [
        row if MEASURED in row.how else dataclasses.replace(row, how=row.how + note)
        for row in rows
        if row.name not in replaced
    ]


def main() -> None:
    """Measure and write benchmarks/results/fusion.json, or print some parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int)
    parser.add_argument(
        "--update", action="store_true", help="write the parts over their old rows, and keep the others"
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only some of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory is not None:
        print_memory(arguments.memory)
        return
    rows: list[Row] = []
    for name in arguments.parts or PARTS:
        seconds, found = cpu_seconds(PARTS[name])
        print(f"-- {PARTS[name].__doc__} ({seconds:.0f} CPU s)", flush=True)
        if arguments.parts:
            print_table(found)
        rows += found
    if arguments.update:
        rows = kept_rows({row.name for row in rows}) + rows
    if arguments.update or not arguments.parts:
        write_results("fusion", rows)


if __name__ == "__main__":
    main()
