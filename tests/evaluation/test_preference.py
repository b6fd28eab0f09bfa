"""The preference rate: counts by hand, intervals of the right width, and what cannot be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.errors import InputError
from trimtab.evaluation.judging.preference import preference_rate
from trimtab.statistics import mean_interval

OURS = {"help": [1.0, 2.0, 0.0, 3.0, 5.0, 1.0], "harm": [1.0, 0.0, 0.0, 1.0, 2.0, 1.0]}
THEIRS = {"help": [0.0, 1.0, 1.0, 3.0, 4.0, 1.0], "harm": [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]}
# help: + + − = + =    harm: + − − + + =    both: win, tie, loss, tie, win, tie


def test_counts_and_rates_by_hand() -> None:
    found = preference_rate(OURS, THEIRS)
    assert (found.wins, found.ties, found.losses, found.num_prompts) == (2, 3, 1, 6)
    assert found.rate == mean_interval([1, 0, -1, 0, 1, 0])
    assert found.rate.value == pytest.approx(1 / 6)
    assert found.net_win_rates == {
        "help": mean_interval([1, 1, -1, 0, 1, 0]),
        "harm": mean_interval([1, -1, -1, 1, 1, 0]),
    }


def test_the_order_of_methods_turns_the_sign() -> None:
    there, back = preference_rate(OURS, THEIRS), preference_rate(THEIRS, OURS)
    assert (back.wins, back.ties, back.losses) == (there.losses, there.ties, there.wins)
    assert back.rate.value == -there.rate.value
    assert back.net_win_rates["harm"].value == -there.net_win_rates["harm"].value


def test_objectives_are_matched_by_name() -> None:
    assert preference_rate(OURS, dict(reversed(THEIRS.items()))) == preference_rate(OURS, THEIRS)


def test_one_objective_is_its_net_win_rate() -> None:
    found = preference_rate({"help": OURS["help"]}, {"help": THEIRS["help"]})
    assert (found.wins, found.ties, found.losses) == (3, 2, 1)
    assert found.rate == found.net_win_rates["help"]


def test_three_objectives_must_all_agree() -> None:
    ours = {name: [1.0, 1.0] for name in "abc"}
    theirs = {"a": [0.0, 0.0], "b": [0.0, 0.0], "c": [0.0, 2.0]}
    assert (preference_rate(ours, theirs).wins, preference_rate(ours, theirs).ties) == (1, 1)


def test_a_reward_that_is_equal_on_one_objective_is_a_tie() -> None:
    found = preference_rate({"a": [1.0, 1.0], "b": [1.0, 1.0]}, {"a": [0.0, 2.0], "b": [1.0, 1.0]})
    assert (found.wins, found.ties, found.losses) == (0, 2, 0)


def test_outcomes_that_are_all_the_same() -> None:
    found = preference_rate({"a": [1.0] * 5}, {"a": [0.0] * 5})
    assert (found.wins, found.num_prompts) == (5, 5)
    assert (found.rate.low, found.rate.value, found.rate.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_at_199_prompts_the_half_width_is_10_to_14_points(shift: float) -> None:
    rng = np.random.default_rng(3)
    # Two objectives that go together a little, as helpful and harmless do.
    ours, theirs = (rng.multivariate_normal([0, 0], [[1, 0.3], [0.3, 1]], 199) for _ in range(2))
    found = preference_rate(
        {"help": (ours[:, 0] + shift).tolist(), "harm": (ours[:, 1] + shift).tolist()},
        {"help": theirs[:, 0].tolist(), "harm": theirs[:, 1].tolist()},
    )
    for interval in (found.rate, *found.net_win_rates.values()):
        assert interval.low <= interval.value <= interval.high
        # Without ties and near an even score it is 1.96 / √199, 13.9 points.
        assert 0.10 <= (interval.high - interval.low) / 2 <= 0.143
    assert found.wins + found.ties + found.losses == found.num_prompts == 199


def test_more_confidence_is_wider() -> None:
    wide, narrow = (preference_rate(OURS, THEIRS, confidence=c) for c in (0.99, 0.8))
    for one, two in ((wide.rate, narrow.rate), (wide.net_win_rates["help"], narrow.net_win_rates["help"])):
        assert one.high - one.low > two.high - two.low


@pytest.mark.parametrize(
    ("ours", "theirs", "problem"),
    [
        ({}, {}, "nothing, the other for nothing"),
        ({"a": [1.0, 2.0]}, {"b": [1.0, 2.0]}, "rewards for a, the other for b"),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.0], "b": [1.0, 2.0]}, "rewards for a, the other for a, b"),
        ({"a": [1.0, 2.0]}, {"a": [1.0]}, "a 2 and 1"),
        ({"a": [1.0, 2.0], "b": [1.0]}, {"a": [1.0, 2.0], "b": [1.0]}, "a 2 and 2, b 1 and 1"),
        ({"a": [1.0, math.nan]}, {"a": [1.0, 2.0]}, "a reward of prompt 1 is nan"),
        ({"a": [1.0, 2.0]}, {"a": [-math.inf, 2.0]}, "a reward of prompt 0 is -inf"),
        ({"a": [1.0]}, {"a": [2.0]}, "at least two"),
        ({"a": []}, {"a": []}, "at least two"),
    ],
)
def test_what_cannot_be_compared(ours: dict[str, list[float]], theirs: dict[str, list[float]], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        preference_rate(ours, theirs)
