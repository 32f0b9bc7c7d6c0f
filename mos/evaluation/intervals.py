"""Bootstrap intervals for means and for paired differences, with whole groups resampled together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mos.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its percentile bootstrap interval.

    Attributes:
        mean: Mean of the values, NaN left out by the caller.
        low: Lower end of the interval.
        high: Upper end of the interval.
        count: Number of values behind the mean.
        level: Confidence, 0.95 for a 95 % interval.
    """

    mean: float
    low: float
    high: float
    count: int
    level: float = 0.95

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0.0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high < 0.0

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(
    values: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean.

    With `groups`, whole groups are drawn with replacement (and their values pooled), so that pictures of one
    concept, which are alike, do not count as independent evidence. Of one group alone its values are drawn: the
    interval then speaks of that group only.

    Args:
        values: [n], finite.
        groups: One label a value; None draws single values.
        num_resamples: Number of bootstrap draws.
        level: Confidence of the interval, between 0 and 1.
        seed: Seed of the draws; same seed, same interval.

    Raises:
        BadInputError: If there is no value, one is not finite, or the labels do not match the values.
    """
    data = np.asarray(values, dtype=np.float64).ravel()
    if data.size == 0 or not np.isfinite(data).all():
        raise BadInputError(f"an interval needs finite values; found {data.size} of which some may be NaN")
    if not 0.0 < level < 1.0:
        raise BadInputError(f"confidence level is {level}; expected between 0 and 1")
    sums, counts = _group_totals(data, groups)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, sums.size, size=(num_resamples, sums.size))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(mean=float(data.mean()), low=float(low), high=float(high), count=data.size, level=level)


def paired_difference(
    better: ArrayLike,
    worse: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of `better - worse`, pair by pair (same prompt, same seed, same concept).

    Raises:
        BadInputError: If the two do not hold the same number of values.
    """
    left, right = np.asarray(better, dtype=np.float64), np.asarray(worse, dtype=np.float64)
    if left.shape != right.shape:
        raise BadInputError(f"paired values have shapes {left.shape} and {right.shape}; expected equal ones")
    return bootstrap_mean(left - right, groups=groups, num_resamples=num_resamples, level=level, seed=seed)


def _group_totals(
    data: NDArray[np.float64], groups: Sequence[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of each group's values; every value is its own group without labels that differ."""
    if groups is not None and len(groups) != data.size:
        raise BadInputError(f"{data.size} values but {len(groups)} group labels")
    if groups is None or len({*groups}) == 1:
        return data, np.ones_like(data)
    order = {label: index for index, label in enumerate(dict.fromkeys(groups))}
    index = np.array([order[label] for label in groups])
    sums = np.bincount(index, weights=data).astype(np.float64)
    counts = np.bincount(index).astype(np.float64)
    return sums, counts
