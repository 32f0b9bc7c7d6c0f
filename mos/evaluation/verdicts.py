"""What paired scores say about the method's claims: yes, no, or not to be told from these pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from mos.evaluation.intervals import Interval, bootstrap_mean
from mos.evaluation.results import PictureScore, concept_of, metric_named, values_of

PRIMARY = "probe_identity"
"""The measure of identity that decides, chosen before any result was seen."""

FALLBACK = "image_alignment_pairwise"
"""What decides where there is no probe."""

MAX_LOSS_SHARE = 1 / 3
"""Largest part of averaging's loss that gradient fusion may lose; the paper has .025 / .094."""


GATE = {
    "ceiling: autoencoder": {"probe_class": 0.95, "probe_accessory": 0.95},
    "floor: untrained base": {"probe_class": 0.95, "probe_backdrop": 0.95},
}
"""What a base must keep of true renders, and obey of a plain prompt, before samples say anything about a method."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim in words with its answer: True holds, False does not, None cannot be told."""

    statement: str
    holds: bool | None
    evidence: str


def judge(rows: Sequence[PictureScore], *, by_concept: bool = False) -> list[Verdict]:
    """Judge the claims whose methods are among the rows, on the primary measure of identity."""
    metric = primary_metric(rows)
    values = {
        method: values_of((row for row in rows if row.method == method), metric)
        for method in dict.fromkeys(row.method for row in rows)
    }
    ready = readiness(rows)
    verdicts = [] if ready is None else [ready]
    if comparable(values, "single", "floor: untrained base"):
        verdicts.append(
            _above(
                "A concept alone shows its identity better than the untrained base does.",
                metric, values, {"single": 1.0, "floor: untrained base": -1.0}, by_concept,
            )
        )  # fmt: skip
    for rival, words in (("average", "averaging the weights"), ("sum", "adding the weights up")):
        if comparable(values, "gradient", rival):
            claim = f"Gradient fusion keeps more of the identities than {words}."
            verdicts.append(_above(claim, metric, values, {"gradient": 1.0, rival: -1.0}, by_concept))
    if comparable(values, "single", "average", "gradient"):
        verdicts.append(_third(metric, values, by_concept))
    return verdicts


def readiness(rows: Sequence[PictureScore]) -> Verdict | None:
    """Whether the base can tell methods apart: its autoencoder keeps, and it draws, what an identity is made of.

    None where the probe, the autoencoder's ceiling or the untrained base took no part.
    """
    found = []
    for method, gates in GATE.items():
        for metric, needed in gates.items():
            values = values_of((row for row in rows if row.method == method), metric)
            if not values:
                return None
            found.append((method, metric, sum(values.values()) / len(values), needed))
    return Verdict(
        statement="The base is good enough to tell methods apart.",
        holds=all(mean >= needed for _, _, mean, needed in found),
        evidence=", ".join(
            f"{method}, {metric} {mean:.3f}, needed {needed:.2f}" for method, metric, mean, needed in found
        ),
    )


def primary_metric(rows: Sequence[PictureScore]) -> str:
    """The measure of identity that decides: the probe's where it took part."""
    return PRIMARY if any(PRIMARY in row.scores for row in rows) else FALLBACK


Values = dict[str, dict[tuple[str, str, int], float]]


def comparable(values: Values, *methods: str) -> bool:
    """Whether all these methods drew, and have a value of, at least one picture in common."""
    return bool(set.intersection(*(set(values.get(method, {})) for method in methods)))


def combined(values: Values, weights: dict[str, float], by_concept: bool) -> Interval:
    """Interval of a weighted sum of methods, pair by pair, on the pictures all of them have."""
    shared = [pair for pair in values[next(iter(weights))] if all(pair in values[method] for method in weights)]
    sums = [sum(weight * values[method][pair] for method, weight in weights.items()) for pair in shared]
    return bootstrap_mean(sums, groups=[concept_of(pair) for pair in shared] if by_concept else None)


def _above(statement: str, metric: str, values: Values, weights: dict[str, float], by_concept: bool) -> Verdict:
    interval = combined(values, weights, by_concept)
    return Verdict(statement=statement, holds=_sign(interval), evidence=_evidence(metric, interval))


def _third(metric: str, values: Values, by_concept: bool) -> Verdict:
    """Whether (single - gradient) <= (single - average) / 3; only where averaging loses anything at all."""
    statement = "Gradient fusion loses at most a third of what averaging loses."
    loss_average = combined(values, {"single": 1.0, "average": -1.0}, by_concept)
    loss_gradient = combined(values, {"single": 1.0, "gradient": -1.0}, by_concept)
    evidence = (
        f"{metric_named(metric).label}: gradient fusion loses {loss_gradient}, averaging {loss_average}, "
        f"over {loss_average.count} pairs"
    )
    if not loss_average.above_zero:
        return Verdict(statement=statement, holds=None, evidence=evidence + "; averaging loses nothing to compare with")
    margin = combined(values, {"single": MAX_LOSS_SHARE - 1.0, "gradient": 1.0, "average": -MAX_LOSS_SHARE}, by_concept)
    return Verdict(statement=statement, holds=_sign(margin), evidence=evidence)


def _sign(interval: Interval) -> bool | None:
    return True if interval.above_zero else (False if interval.below_zero else None)


def _evidence(metric: str, interval: Interval) -> str:
    return (
        f"{metric_named(metric).label}: {interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}] "
        f"over {interval.count} pairs"
    )
