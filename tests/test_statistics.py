"""Intervals: known values, what moves them and what does not, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.errors import InputError, OptionError
from trimtab.statistics import bca_levels, difference_interval, mean_interval, proportion_interval, wilson_interval

SKEWED = [0.1, 0.2, 0.2, 0.4, 0.9, 1.7, 3.0, 7.5]


def test_bca_agrees_with_an_independent_implementation() -> None:
    # scipy 1.17.1: stats.bootstrap((SKEWED,), np.mean, n_resamples=1_000_000, batch=10_000, rng=1), method BCa.
    interval = mean_interval(SKEWED, num_resamples=200_000)
    assert interval.value == pytest.approx(1.75)
    assert interval.low == pytest.approx(0.6375, abs=0.01)
    assert interval.high == pytest.approx(4.4125, abs=0.05)


def test_a_skewed_sample_has_a_skewed_interval() -> None:
    interval = mean_interval(SKEWED)
    assert interval.high - interval.value > 1.8 * (interval.value - interval.low)


def test_the_interval_of_a_normal_sample_is_nearly_the_textbook_one() -> None:
    sample = np.random.default_rng(0).normal(size=400)
    half = 1.96 * sample.std(ddof=1) / math.sqrt(400)
    interval = mean_interval(sample.tolist(), num_resamples=50_000)
    assert interval.low == pytest.approx(sample.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(sample.mean() + half, abs=0.1 * half)


def test_the_seed_decides() -> None:
    assert mean_interval(SKEWED, seed=4) == mean_interval(SKEWED, seed=4)
    assert mean_interval(SKEWED, seed=4) != mean_interval(SKEWED, seed=5)


def test_values_move_their_interval_with_them() -> None:
    there, here = mean_interval([value * 3 + 10 for value in SKEWED]), mean_interval(SKEWED)
    assert (there.low, there.value, there.high) == pytest.approx(
        tuple(3 * bound + 10 for bound in (here.low, here.value, here.high))
    )


def test_negated_values_have_the_mirrored_interval() -> None:
    mirrored = mean_interval([-value for value in SKEWED], num_resamples=200_000)
    interval = mean_interval(SKEWED, num_resamples=200_000)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low), abs=0.03)


def test_more_confidence_is_wider() -> None:
    wide, narrow = mean_interval(SKEWED, confidence=0.99), mean_interval(SKEWED, confidence=0.8)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_equal_values_have_an_interval_of_no_width() -> None:
    interval = mean_interval([0.0] * 64)
    assert (interval.low, interval.value, interval.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_the_interval_holds_the_true_mean_about_as_often_as_it_says(draw: str) -> None:
    rng = np.random.default_rng(1)
    truth = 0.0 if draw == "normal" else 1.0
    samples = [getattr(rng, draw)(size=64).tolist() for _ in range(600)]
    intervals = [mean_interval(sample, num_resamples=1000, seed=seed) for seed, sample in enumerate(samples)]
    held = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.91 < held < 0.98


def test_pairing_removes_what_the_prompts_differ_by() -> None:
    rng = np.random.default_rng(2)
    before = (100 * rng.normal(size=50)).tolist()
    after = [value + 1 + 0.1 * noise for value, noise in zip(before, rng.normal(size=50), strict=True)]
    interval = difference_interval(after, before)
    assert 0.9 < interval.low < 1 < interval.high < 1.1


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(InputError, match="two values for each prompt, got 2 and 3"):
        difference_interval([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_value_has_no_interval(values: list[float]) -> None:
    with pytest.raises(InputError, match="at least two values"):
        mean_interval(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_named(bad: float) -> None:
    with pytest.raises(InputError, match="Value 2 is not finite"):
        mean_interval([0.0, 1.0, bad, 2.0])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(OptionError, match=r"for example 0\.95"):
        mean_interval([0.0, 1.0], confidence=confidence)
    with pytest.raises(OptionError, match=r"for example 0\.95"):
        wilson_interval(1, 2, confidence=confidence)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # scipy 1.17.1: stats.binomtest(k, n).proportion_ci(method="wilson")
    [(7, 10, 0.396778, 0.892209), (10, 10, 0.722467, 1.0), (0, 10, 0.0, 0.277533), (500, 1000, 0.469069, 0.530931)],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.value, interval.high) == pytest.approx((low, successes / trials, high), abs=1e-6)
    assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_no_proportion(successes: int, trials: int) -> None:
    with pytest.raises(InputError, match="is not a proportion"):
        wilson_interval(successes, trials)


def test_an_interval_reads_well() -> None:
    assert str(wilson_interval(7, 10)) == "0.700 [0.397, 0.892]"


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=2, max_size=8))
# 0.01 in units of 2^1023 has fewer digits than 0.01.
@example([0.01, 2.0**1022])
@settings(deadline=None)
def test_any_finite_values_have_an_interval(values: list[float]) -> None:
    interval = mean_interval(values, num_resamples=50)
    assert all(map(math.isfinite, (interval.low, interval.value, interval.high)))
    assert min(values) <= interval.low <= interval.high <= max(values)


@pytest.mark.parametrize("unit", [5e-324, 1e-300, 1e300, 2.0**1021])
def test_the_unit_of_the_values_does_not_matter(unit: float) -> None:
    values = [0.0, 1.0, 1.0, 3.0, 0.0, 2.0]
    here, there = mean_interval(values), mean_interval([value * unit for value in values])
    rounded = [
        math.floor(bound * unit / 5e-324 + 0.5) * 5e-324 if unit < 1e-320 else bound * unit
        for bound in (here.low, here.high)
    ]
    assert (there.low, there.high) == pytest.approx(tuple(rounded), rel=1e-12)


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=6))
@settings(deadline=None)
def test_any_finite_pairs_have_an_interval_or_are_refused(pairs: list[tuple[float, float]]) -> None:
    after, before = zip(*pairs, strict=True)
    if all(math.isfinite(one - other) for one, other in pairs):
        interval = difference_interval(after, before)
        assert math.isfinite(interval.low)
        assert math.isfinite(interval.high)
    else:
        with pytest.raises(InputError, match="no finite difference"):
            difference_interval(after, before)


@given(finite, st.floats(-1e6, 1e6))
def test_levels_are_shares_at_any_acceleration(value: float, acceleration: float) -> None:
    low, high = bca_levels(value, np.array([0.0, 0.5, 1.0]), acceleration)
    assert 0 <= low <= 1
    assert 0 <= high <= 1


def test_pairs_of_their_own_prompts_have_wilsons_interval() -> None:
    outcomes = [True] * 7 + [False] * 3
    assert proportion_interval(outcomes) == wilson_interval(7, 10)
    assert proportion_interval(outcomes, range(10)) == wilson_interval(7, 10)


def test_ten_copies_of_a_prompt_tell_no_more_than_one() -> None:
    """Pairs of one prompt that always agree: the interval is about that of as many prompts, not of as many pairs."""
    prompts = [True] * 14 + [False] * 6
    outcomes, groups = [one for one in prompts for _ in range(10)], [i for i in range(20) for _ in range(10)]
    alone, copied = wilson_interval(14, 20), proportion_interval(outcomes, groups)
    assert copied.value == alone.value
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert proportion_interval([True] * 200, groups) == wilson_interval(20, 20)


def test_pairs_that_only_share_a_prompt_by_chance_count_nearly_in_full() -> None:
    rng = np.random.default_rng(0)
    outcomes, groups = (rng.random(400) < 0.6).tolist(), [i // 4 for i in range(400)]
    clustered, plain = proportion_interval(outcomes, groups), proportion_interval(outcomes)
    assert clustered.high - clustered.low == pytest.approx(plain.high - plain.low, rel=0.15)


def test_the_interval_over_prompts_holds_the_truth_where_the_one_over_pairs_does_not() -> None:
    rng = np.random.default_rng(3)
    held = {"prompts": 0, "pairs": 0}
    for _ in range(400):
        chances = rng.beta(0.6, 0.4, size=30)  # mean 0.6, pairs of a prompt alike
        outcomes = [bool(one) for chance in chances for one in rng.random(10) < chance]
        groups = [index for index in range(30) for _ in range(10)]
        for name, labels in (("prompts", groups), ("pairs", None)):
            interval = proportion_interval(outcomes, labels)
            held[name] += interval.low <= 0.6 <= interval.high
    assert 0.9 < held["prompts"] / 400 < 0.99
    assert held["pairs"] / 400 < 0.75


def test_a_label_each() -> None:
    with pytest.raises(InputError, match="2 outcomes and 1 labels"):
        proportion_interval([True, False], [0])
    with pytest.raises(InputError, match="0 successes in 0 trials"):
        proportion_interval([])
