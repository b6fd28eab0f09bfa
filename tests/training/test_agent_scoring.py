"""Several rewards, their baseline, and answers that get none."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import pytest

from trimtab.core import Prompt
from trimtab.errors import ModelError, OptionError
from trimtab.training.run.rating import PATIENCE, Rater, source_of
from trimtab.training.run.rewards import AgentReward


def length(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def vowels(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [math.nan if "?" in text else sum(letter in "aeiou" for letter in text) for text in texts]


REWARDS = [AgentReward("length", length, 2.0), AgentReward("vowels", vowels, -1.0)]


def test_scores_are_added_with_their_multipliers_and_less_the_baseline() -> None:
    rater = Rater(REWARDS, baseline=1.5, reward_scale=0.5)
    (rating,) = rater.rate([0], ["p"], ["abce"])
    assert rating is not None
    assert rating.scores == {"length": 4.0, "vowels": 2.0}
    assert (rating.total, rating.final) == (6.0, 0.5 * (6.0 - 1.5))
    assert rater.needs_base([0, 1]) == []


def test_the_bases_answer_is_asked_for_once_and_is_the_baseline_of_its_prompt() -> None:
    rater = Rater(REWARDS, baseline="base")
    assert rater.needs_base([3, 1, 3]) == [0, 1]
    rater.learn_baselines([3, 1], ["p", "q"], ["bb", "aaa"])
    assert rater.baselines == {3: 4.0, 1: 3.0}
    assert rater.needs_base([3, 1, 2]) == [2]
    finals = [rating.final for rating in rater.rate([3, 1], ["p", "q"], ["b", "b"]) if rating]
    assert finals == [2.0 - 4.0, 2.0 - 3.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_answer_without_a_reward_is_left_out_and_counted(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    def broken(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [bad if text == "?" else 1.0 for text in texts]

    rater = Rater([AgentReward("cost", broken, -1.0)])
    with caplog.at_level(logging.WARNING):
        found = rater.rate([0, 1, 2], ["p"] * 3, ["a", "?", "b"])
    assert [rating is None for rating in found] == [False, True, False]
    assert rater.num_dropped == 1
    assert f"reward cost is {bad} (1 so far)" in caplog.text


def test_a_prompt_whose_baseline_is_not_a_number_is_left_out() -> None:
    rater = Rater(REWARDS, baseline="base")
    rater.learn_baselines([0], ["p"], ["why?"])
    assert rater.baselines == {0: None}
    assert rater.rate([0], ["p"], ["because"]) == [None]
    assert rater.needs_base([0]) == [], "asking again would give the same"


def test_rewards_that_are_never_numbers_end_the_run() -> None:
    rater = Rater(REWARDS)
    for _ in range(3):
        rater.rate([0] * 30, ["p"] * 30, ["?"] * 29 + ["fine"])
    with pytest.raises(ModelError, match=rf"{PATIENCE} episodes in a row .*reward vowels is nan"):
        rater.rate([0] * 64, ["p"] * 64, ["?"] * 64)


def test_a_scorer_that_miscounts_is_named() -> None:
    rater = Rater([AgentReward("short", lambda prompts, texts: [1.0])])
    with pytest.raises(ModelError, match="short gave 1 rewards for 2 texts"):
        rater.rate([0, 1], ["p", "q"], ["a", "b"])


def test_a_scorer_is_found_by_name_and_an_unknown_one_refused() -> None:
    with pytest.raises(OptionError, match="Unknown scorer 'sentimant'"):
        Rater([AgentReward("mood", "sentimant")])
    rater = Rater([AgentReward("mood", f"{__name__}:length")])
    (rating,) = rater.rate([0], ["p"], ["abc"])
    assert rating is not None
    assert rating.total == 3.0


def test_a_restored_rater_remembers() -> None:
    rater = Rater(REWARDS, baseline="base")
    rater.learn_baselines([0, 5], ["p", "q"], ["why?", "aa"])
    rater.rate([0, 0], ["p", "p"], ["a", "b"])
    restored = Rater(REWARDS, baseline="base")
    restored.restore(rater.state())
    assert (restored.state(), restored.num_dropped) == (rater.state(), 2)


def test_where_a_reward_comes_from_has_a_name() -> None:
    assert source_of(AgentReward("a", "sentiment")) == "sentiment"
    assert source_of(AgentReward("a", length)) == f"{__name__}:length"
