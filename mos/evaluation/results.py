"""Scores of single pictures and their summaries: what every table, chart and claim is made from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mos.errors import BadInputError
from mos.evaluation.intervals import Interval, bootstrap_mean, paired_difference


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score's name in tables, its label for people and which way is better."""

    name: str
    label: str
    higher_is_better: bool = True


METRICS: tuple[Metric, ...] = (
    Metric(name="probe_identity", label="identity kept (probe)"),
    Metric(name="probe_class", label="class kept (probe)"),
    Metric(name="probe_pattern", label="pattern kept (probe)"),
    Metric(name="probe_accessory", label="accessory kept (probe)"),
    Metric(name="probe_colour", label="colour kept (probe)"),
    Metric(name="probe_exact", label="all four kept at once (probe)"),
    Metric(name="probe_backdrop", label="backdrop as asked (probe)"),
    Metric(name="image_alignment_pairwise", label="image-alignment (pairwise)"),
    Metric(name="image_alignment_first_reference", label="image-alignment (first reference)"),
    Metric(name="text_alignment", label="text-alignment"),
    Metric(name="identity_rank", label="identity rank among distractors", higher_is_better=False),
    Metric(name="drift", label="drift on generic prompts", higher_is_better=False),
    Metric(name="diversity", label="diversity over seeds"),
)
"""Every score there is, in the order of the tables."""

_BY_NAME = {metric.name: metric for metric in METRICS}


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        BadInputError: If there is none; names those there are.
    """
    if name not in _BY_NAME:
        raise BadInputError(f"metric {name!r}: expected one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


@dataclass(frozen=True, kw_only=True)
class PictureScore:
    """The scores of one picture, with everything that tells which picture it is.

    Attributes:
        method: What drew it: "single", "average", "gradient", ... or a ceiling or floor.
        concept: Concept it should show, as owner/name@version; empty for generic prompts.
        prompt: The prompt as written, concept word included.
        seed: Seed of the picture's first noise.
        scores: Metric name -> value; a metric that does not apply is left out.
        family: Prompt family.
        suite: Name of the prompt suite.
        model: Name of the model.
        model_digest: sha256 of the model's files; empty for renders.
    """

    method: str
    concept: str
    prompt: str
    seed: int
    scores: Mapping[str, float]
    family: str = ""
    suite: str = ""
    model: str = ""
    model_digest: str = ""

    @property
    def pair(self) -> tuple[str, str, int]:
        """What two methods' pictures share when they may be compared: concept, prompt and seed."""
        return self.concept, self.prompt, self.seed


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method's summary: an interval a metric."""

    method: str
    count: int
    intervals: Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric's paired difference `method - baseline` over the same prompts and seeds."""

    metric: str
    method: str
    baseline: str
    interval: Interval

    @property
    def better(self) -> bool | None:
        """True or False when the interval excludes zero, None when it does not."""
        gain = self.interval.above_zero if _BY_NAME[self.metric].higher_is_better else self.interval.below_zero
        loss = self.interval.below_zero if _BY_NAME[self.metric].higher_is_better else self.interval.above_zero
        return True if gain else (False if loss else None)


def values_of(rows: Iterable[PictureScore], metric: str) -> dict[tuple[str, str, int], float]:
    """The finite values of one metric by pair; generic prompts of several models of one method are averaged.

    Raises:
        BadInputError: If two rows are the same picture: then a rerun repeated it.
    """
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in rows:
        value = row.scores.get(metric, math.nan)
        if not math.isfinite(value):
            continue
        values = found.setdefault(row.pair, {})
        if row.model in values or (row.concept and values):
            raise BadInputError(f"{row.method}: {row.concept} {row.prompt!r} seed {row.seed} is scored twice")
        values[row.model] = value
    return {pair: sum(values.values()) / len(values) for pair, values in found.items()}


def concept_of(pair: tuple[str, str, int]) -> str:
    """The concept of a pair without its version: trainings of one concept stay together when drawn again."""
    return pair[0].partition("@")[0]


def summarise(rows: Sequence[PictureScore], *, by_concept: bool = False, seed: int = 0) -> tuple[Cell, ...]:
    """One cell a method, in order of appearance, with bootstrap intervals over pictures (or over concepts)."""
    cells = []
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        intervals = {}
        for metric in METRICS:
            values = values_of(mine, metric.name)
            if values:
                groups = [concept_of(pair) for pair in values] if by_concept else None
                intervals[metric.name] = bootstrap_mean(list(values.values()), groups=groups, seed=seed)
        cells.append(Cell(method=method, count=len(mine), intervals=intervals))
    return tuple(cells)


def compare(
    rows: Sequence[PictureScore],
    method: str,
    baseline: str,
    metric: str,
    *,
    by_concept: bool = False,
    seed: int = 0,
) -> Difference:
    """Paired difference of two methods on the pictures both have drawn.

    Raises:
        BadInputError: If the methods share no picture with that score.
    """
    mine = values_of((row for row in rows if row.method == method), metric)
    theirs = values_of((row for row in rows if row.method == baseline), metric)
    shared = [pair for pair in mine if pair in theirs]
    if not shared:
        raise BadInputError(f"{method} and {baseline} share no prompt and seed with the score {metric}")
    interval = paired_difference(
        [mine[pair] for pair in shared],
        [theirs[pair] for pair in shared],
        groups=[concept_of(pair) for pair in shared] if by_concept else None,
        seed=seed,
    )
    return Difference(metric=metric, method=method, baseline=baseline, interval=interval)
