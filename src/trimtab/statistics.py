"""Intervals for what an evaluation measures. Every figure that is reported carries one.

What it does not know: prompts are taken as independent draws from one population. Two answers to one prompt are not, so
average over a prompt's answers before you come here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InputError, OptionError

Array = NDArray[np.float64]

NUM_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """The mean and its bias-corrected and accelerated bootstrap interval (BCa; Efron 1987, equation 2.3).

    Resamples the values with replacement; the same seed gives the same interval. Values that are all equal give an
    interval of no width. Raises InputError for fewer than two values or one that is not finite.
    """
    _check_confidence(confidence)
    sample = _checked(values)
    mean = float(sample.mean())
    if np.ptp(sample) == 0.0:
        return Interval(mean, mean, mean)
    means = _resampled_means(sample, num_resamples, seed)
    levels = _bca_levels(sample, means, confidence)
    low, high = np.quantile(means, levels)
    return Interval(mean, float(low), float(high))


def difference_interval(
    after: Sequence[float], before: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The mean of `after[i] - before[i]` with its interval: for two runs over the same prompts.

    Pairing removes what the prompts themselves differ by. Raises InputError where the lengths differ.
    """
    if len(after) != len(before):
        raise InputError(
            f"A paired difference needs two values for each prompt, got {len(after)} and {len(before)}. "
            "Score both runs over the same prompts."
        )
    differences = [one - other for one, other in zip(after, before, strict=True)]
    return mean_interval(differences, confidence=confidence, seed=seed)


def wilson_interval(num_successes: float, num_trials: int, *, confidence: float = 0.95) -> Interval:
    """A proportion and its score interval (Wilson 1927), which holds for few trials and near 0 and 1.

    A tie may count as half a success.
    """
    _check_confidence(confidence)
    if not 0 <= num_successes <= num_trials or num_trials == 0:
        raise InputError(f"{num_successes} successes in {num_trials} trials is no proportion; give 0 <= k <= n, n > 0.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_successes / num_trials
    shrink = 1 + z * z / num_trials
    centre = (share + z * z / (2 * num_trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    # At 0 and at n the bound is 0 or 1 exactly; rounding must not put the estimate outside.
    low = 0.0 if num_successes == 0 else centre - half
    high = 1.0 if num_successes == num_trials else centre + half
    return Interval(share, low, high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise OptionError(f"confidence is {confidence}; give a number between 0 and 1, for example 0.95.")


def _checked(values: Sequence[float]) -> Array:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2:
        raise InputError(f"An interval needs at least two values, got {sample.size}. Measure on more prompts.")
    if not np.isfinite(sample).all():
        raise InputError(f"Value {int(np.argmin(np.isfinite(sample)))} is not finite; leave out what has no score.")
    return sample


def _resampled_means(sample: Array, num_resamples: int, seed: int) -> Array:
    """[num_resamples] means, in blocks, so that many values do not need much memory."""
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(sample))
    blocks = [
        sample[rng.integers(len(sample), size=(min(rows, num_resamples - start), len(sample)))].mean(axis=1)
        for start in range(0, num_resamples, rows)
    ]
    return np.concatenate(blocks)


def _bca_levels(sample: Array, means: Array, confidence: float) -> list[float]:
    deviations = sample - sample.mean()
    # The acceleration of a mean, in closed form: a sixth of the skewness over root n.
    acceleration = float(np.sum(deviations**3) / (6 * np.sum(deviations**2) ** 1.5))
    return bca_levels(float(sample.mean()), means, acceleration, confidence=confidence)


def bca_levels(value: float, draws: Array, acceleration: float, *, confidence: float = 0.95) -> list[float]:
    """The two quantiles of the draws of a statistic that bound its BCa interval (Efron 1987, equation 2.3)."""
    normal = NormalDist()
    # Ties count half, and the share stays inside (0, 1), where the normal quantile is finite.
    below = (np.sum(draws < value) + 0.5 * np.sum(draws == value) + 0.5) / (len(draws) + 1)
    bias = normal.inv_cdf(float(below))
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        levels.append(normal.cdf(bias + z / (1 - acceleration * z)))
    return levels
