"""Evaluations of a registry as tables for the terminal and data for programs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mos.errors import BadInputError, NotFoundError
from mos.evaluation.results import METRICS, Cell, Difference, PictureScore, compare, metric_named

if TYPE_CHECKING:
    from cluster.evaluation_rows import ScoredPicture


@dataclass(frozen=True, kw_only=True)
class StoredEvaluation:
    """An evaluation as read from a registry."""

    digest: str
    settings: dict[str, Any]
    rows: "Sequence[ScoredPicture]"


def open_evaluation(registry_url: str, prefix: str) -> StoredEvaluation:
    """Read the evaluation whose digest starts with `prefix`.

    Raises:
        NotFoundError: If there is none; names those there are.
        BadInputError: If there are several.
    """
    from cluster.evaluation import evaluations, score_store

    known = evaluations(registry_url)
    matching = [digest for digest in known if digest.startswith(prefix)]
    if not matching:
        shown = ", ".join(digest[:12] for digest in known) or "none"
        raise NotFoundError(f"evaluation {prefix}: not in {registry_url}, which has {shown}")
    if len(matching) > 1:
        raise BadInputError(f"evaluation {prefix}: could be {', '.join(digest[:12] for digest in matching)}")
    store = score_store(registry_url, matching[0])
    return StoredEvaluation(digest=matching[0], settings=store.settings(), rows=store.read())


def list_evaluations(registry_url: str) -> list[dict[str, Any]]:
    """One line an evaluation: digest, suite, seeds, models and pictures."""
    from cluster.evaluation import evaluations, score_store

    lines = []
    for digest in evaluations(registry_url):
        store = score_store(registry_url, digest)
        settings, rows = store.settings(), store.read()
        lines.append(
            {
                "digest": digest[:12],
                "suite": settings["suite"]["name"],
                "seeds": settings["num_seeds"],
                "models": len({row.score.model for row in rows}),
                "pictures": len(rows),
            }
        )
    return lines


def regrouped(rows: Sequence[PictureScore], by: str) -> list[PictureScore]:
    """The rows with their cells split by model, concept or family beside the method."""
    if by == "method":
        return list(rows)
    if by == "model":
        return [replace(row, method=row.model) for row in rows]
    return [replace(row, method=f"{row.method} · {getattr(row, by) or 'generic'}") for row in rows]


def cells_as_data(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells as plain data."""
    return [
        {
            "method": cell.method,
            "pictures": cell.count,
            "scores": {name: vars(interval) for name, interval in cell.intervals.items()},
        }
        for cell in cells
    ]


def cells_table(cells: Sequence[Cell]) -> str:
    """One line a metric and cell, so that any number of cells fits a terminal."""
    rows = []
    for metric in METRICS:
        for cell in cells:
            value = cell.intervals.get(metric.name)
            if value is not None:
                interval = f"{value.low:.3f} to {value.high:.3f}"
                rows.append([metric.label, cell.method, f"{value.mean:.3f}", interval, str(value.count)])
    return text_table(["score", "method", "mean", "95 % interval", "of"], rows)


def differences_between(
    rows: Sequence[PictureScore], method: str, baseline: str, *, by_concept: bool = False
) -> list[Difference]:
    """Paired differences on every metric both methods have.

    Raises:
        NotFoundError: If a method is not among the rows; names those that are.
    """
    known = list(dict.fromkeys(row.method for row in rows))
    for name in (method, baseline):
        if name not in known:
            raise NotFoundError(f"method {name!r}: not in this evaluation, which has {', '.join(known)}")
    differences = []
    for metric in METRICS:
        pairs = [{row.pair for row in rows if row.method == name and metric.name in row.scores} for name in known]
        mine, theirs = pairs[known.index(method)], pairs[known.index(baseline)]
        if mine & theirs:
            differences.append(compare(rows, method, baseline, metric.name, by_concept=by_concept))
    return differences


def differences_table(differences: Sequence[Difference]) -> str:
    """One line a metric."""
    words = {True: "better", False: "worse", None: "cannot be told"}
    rows = [
        [
            metric_named(row.metric).label,
            f"{row.interval.mean:+.3f}",
            f"{row.interval.low:+.3f} to {row.interval.high:+.3f}",
            str(row.interval.count),
            words[row.better],
        ]
        for row in differences
    ]
    return text_table(["score", "difference", "95 % interval", "pairs", ""], rows)


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns set flush left, as wide as they need."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [columns, *rows]]
    return "\n".join(line.rstrip() for line in lines)
