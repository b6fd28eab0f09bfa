"""What can be set, and what is refused with the way out."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.errors import OptionError
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.run.rewards import AgentReward, check_rewards

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no episode": ({"episodes": 0}, "episodes is 0; give a whole number of at least 1"),
    "a learning rate of 0": ({"actor_learning_rate": 0.0}, "actor_learning_rate is 0"),
    "a rate that is not a number": ({"critic_learning_rate": float("nan")}, "critic_learning_rate is nan"),
    "a negative KL weight": ({"kl_weight": -0.1}, "kl_weight is -0.1"),
    "an entropy above the possible": ({"target_entropy_share": 1.5}, "target_entropy_share is 1.5"),
    "no top-p": ({"top_p": 0.0}, "top_p is 0"),
    "no top-k": ({"top_k": 0}, "top_k is 0"),
    "tau of 0": ({"tau": 0.0}, "tau is 0"),
    "gamma above 1": ({"gamma": 1.01}, "gamma is 1.01"),
    "a baseline by another name": ({"baseline": "sft"}, "baseline is 'sft'.*'base'"),
    "an infinite baseline": ({"baseline": float("inf")}, "baseline is inf"),
    "a dtype": ({"state_dtype": "int8"}, "accepted: float32, float16"),
    "a network without a second layer": ({"hidden_dim": 3}, "hidden_dim is 3"),
    "a buffer that never fills": ({"buffer_size": 1000}, "never begin: they wait for 1024 .* holds 1000"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_out_of_range_is_refused_by_name(name: str) -> None:
    options, problem = WRONG[name]
    with pytest.raises(OptionError, match=problem):
        AgentSettings(**options)


def test_the_papers_values_are_the_defaults() -> None:
    settings = AgentSettings()
    assert (settings.top_k, settings.top_p, settings.temperature, settings.gamma) == (40, 0.95, 0.8, 0.99)
    assert settings.warmup == 64 * 1024
    assert AgentSettings(episodes=33).num_rounds == 3


@pytest.mark.parametrize("multiplier", [0.0, float("nan"), float("inf")])
def test_a_multiplier_that_says_nothing_is_refused(multiplier: float) -> None:
    with pytest.raises(OptionError, match="The multiplier of reward cost"):
        AgentReward("cost", "sentiment", multiplier)


def test_rewards_are_named_and_named_once() -> None:
    with pytest.raises(OptionError, match="not a name for a reward"):
        AgentReward("a b", "sentiment")
    with pytest.raises(OptionError, match="Two rewards are named 'a'"):
        check_rewards([AgentReward("a", "x"), AgentReward("b", "x"), AgentReward("a", "y")])
    with pytest.raises(OptionError, match="no reward"):
        check_rewards([])
    check_rewards([AgentReward("a", "x"), AgentReward("b", "x")])
