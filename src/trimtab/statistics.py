"""Intervals for what an evaluation measures. Every figure that is reported carries one.

What it does not know: prompts are taken as independent draws from one population. Two answers to one prompt are not, so
average over a prompt's answers before you come here, or say which rows share a prompt (`proportion_interval`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InputError, OptionError

Array = NDArray[np.float64]

NUM_RESAMPLES = 10_000

FEW = 30
"""A rate over fewer independent trials says little, whatever it is; who shows one says so."""


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
    interval of no width. Any finite values have an interval, the largest and smallest floats too. Raises InputError for
    fewer than two values or one that is not finite.
    """
    _check_confidence(confidence)
    sample = _checked(values)
    lowest, highest = float(sample.min()), float(sample.max())
    # In units of the largest value, a power of 2 so that no digit changes: sums cannot overflow, squares not vanish.
    exponent = math.frexp(float(np.abs(sample).max()))[1]
    sample = np.ldexp(sample, -exponent)
    mean = float(sample.mean())
    found = [mean, mean, mean]
    if np.ptp(sample) > 0.0:
        means = _resampled_means(sample, num_resamples, seed)
        levels = bca_levels(mean, means, acceleration_of(sample - mean), confidence=confidence)
        low, high = np.quantile(means, levels)
        found = [mean, float(low), float(high)]
    # Means lie among the values; rounding, that of the change of units too, must not put them outside.
    value, low, high = (min(max(math.ldexp(bound, exponent), lowest), highest) for bound in found)
    return Interval(value, low, high)


def acceleration_of(deviations: Array) -> float:
    """The acceleration Σd³ / (6 (Σd²)^1.5) of a statistic (Efron and Tibshirani 1993, equation 14.15).

    `deviations` d are the mean of its jackknife values less each of them; of a mean, the values less their mean, which
    differ from those by a factor. 0 where nothing deviates.
    """
    largest = float(np.abs(deviations).max()) if len(deviations) else 0.0
    if largest == 0.0:
        return 0.0
    unit = deviations / largest
    return float(np.sum(unit**3) / (6 * np.sum(unit**2) ** 1.5))


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
    for index, value in enumerate(differences):
        if not math.isfinite(value):
            raise InputError(
                f"The values of prompt {index}, {after[index]} and {before[index]}, have no finite difference. Leave "
                "out what has no score, or scale the scores down."
            )
    return mean_interval(differences, confidence=confidence, seed=seed)


def proportion_interval(
    outcomes: Sequence[bool], groups: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> Interval:
    """A proportion and its score interval (Wilson 1927), over prompts where several trials share one.

    `groups` says which trials belong together, one label each; None: all are independent. Trials of one prompt tend to
    agree, so the number of trials is divided by the design effect: the variance of the proportion over prompts, by that
    of as many independent trials (Kish 1965, section 5.4; with a score interval as in Korn and Graubard 1998). At most
    the trials themselves count; where all agree, prompts count as trials. Raises InputError where there is no trial, or
    not a label each.
    """
    if groups is not None and len(groups) != len(outcomes):
        raise InputError(f"There are {len(outcomes)} outcomes and {len(groups)} labels of groups; give one label each.")
    num = len(outcomes)
    totals: dict[Hashable, list[int]] = {}
    for outcome, group in zip(outcomes, range(num) if groups is None else groups, strict=True):
        total = totals.setdefault(group, [0, 0])
        total[0] += bool(outcome)
        total[1] += 1
    successes = sum(hits for hits, _ in totals.values())
    if len(totals) == num:
        return wilson_interval(successes, num, confidence=confidence)
    share = successes / num
    effective = float(len(totals))
    if 0 < share < 1 and len(totals) > 1:
        between = sum((hits - share * size) ** 2 for hits, size in totals.values()) * len(totals) / (len(totals) - 1)
        effective = min(float(num), num * num * share * (1 - share) / between) if between > 0 else float(num)
    return _wilson(share, effective, confidence)


def wilson_interval(num_successes: float, num_trials: int, *, confidence: float = 0.95) -> Interval:
    """A proportion and its score interval (Wilson 1927), which holds for few trials and near 0 and 1.

    A tie may count as half a success.
    """
    _check_confidence(confidence)
    if not 0 <= num_successes <= num_trials or num_trials == 0:
        raise InputError(
            f"{num_successes} successes in {num_trials} trials is not a proportion; give 0 <= k <= n, n > 0."
        )
    return _wilson(num_successes / num_trials, num_trials, confidence)


def _wilson(share: float, num_trials: float, confidence: float) -> Interval:
    """The score interval of a share of a number of trials, which may be a fraction (an effective number)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    shrink = 1 + z * z / num_trials
    centre = (share + z * z / (2 * num_trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    # At 0 and at n the bound is 0 or 1 exactly; rounding must not put the estimate outside.
    low = 0.0 if share == 0 else centre - half
    high = 1.0 if share == 1 else centre + half
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


def paired_means(rows: Array, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Array:
    """[num_resamples, K] means of K rows [K, N] over N prompts that are drawn with replacement, the same for all rows.

    For what is decided by comparing rows, such as which of them is the highest. The same seed gives the same draws.
    """
    num = rows.shape[1]
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num, np.full(num, 1 / num), size=num_resamples)
    means: Array = counts.astype(np.float64) @ (rows.T / num)
    return means


def bca_levels(value: float, draws: Array, acceleration: float, *, confidence: float = 0.95) -> list[float]:
    """The two quantiles of the draws of a statistic that bound its BCa interval (Efron 1987, equation 2.3)."""
    normal = NormalDist()
    # Ties count half, and the share stays inside (0, 1), where the normal quantile is finite.
    below = (np.sum(draws < value) + 0.5 * np.sum(draws == value) + 0.5) / (len(draws) + 1)
    bias = normal.inv_cdf(float(below))
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        rest = 1 - acceleration * z
        # Past its pole the formula has turned round: a tail that the acceleration stretches without an end.
        levels.append(normal.cdf(bias + z / rest) if rest > 0 else float(z > 0))
    return levels
