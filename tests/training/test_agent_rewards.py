"""The formulas against numbers worked out by hand, and against a loop that follows the text of the paper."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.training.agent.rewards import (
    base_logprobs,
    conditional_logprobs,
    decision_entropy,
    kl_rewards,
    step_kl,
    with_answer_reward,
)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def everything(log_odds: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(log_odds, dtype=torch.bool)


def test_the_first_accepted_by_hand() -> None:
    """p = ½, ¼, ½: first accepted with ½, ½·¼ = ⅛, ½·¾·½ = 3/16; together 13/16."""
    log_odds = torch.tensor([logit(0.5), logit(0.25), logit(0.5)])
    expected = torch.tensor([8 / 13, 2 / 13, 3 / 13])
    torch.testing.assert_close(conditional_logprobs(log_odds, everything(log_odds)).exp(), expected)


def test_the_base_over_the_candidates_by_hand() -> None:
    """Probabilities 0.4 and 0.1 at temperature ½ are 0.16 and 0.01: 16 to 1."""
    found = base_logprobs(torch.tensor([0.4, 0.1, 0.3]).log(), torch.tensor([True, True, False]), 0.5)
    torch.testing.assert_close(found.exp(), torch.tensor([16 / 17, 1 / 17, 0.0]))


def test_the_kl_reward_by_hand() -> None:
    agent, base = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.75, 0.0]).log()
    expected = torch.tensor([-0.1 * math.log(2), -0.1 * math.log(2 / 3), 0.0])
    torch.testing.assert_close(kl_rewards(agent, base, 0.1), expected)
    assert step_kl(agent, base).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def loop(probabilities: list[float], scores: list[float], temperature: float, weight: float) -> list[float]:
    """r_i = −w (log π_agent(i) − log π_base(i)) as one would write it after reading the paper."""
    joint, rejected = [], 1.0
    for p in probabilities:
        joint.append(rejected * p)
        rejected *= 1 - p
    base = [math.exp(score / temperature) for score in scores]
    return [
        -weight * (math.log(joint[i] / sum(joint)) - math.log(base[i] / sum(base))) for i in range(len(probabilities))
    ]


def test_rows_of_unequal_length_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, widest = [2, 7, 40, 5], 40
    log_odds = torch.randn(4, widest, generator=generator) * 2
    scores = torch.log_softmax(torch.randn(4, widest, generator=generator), -1)
    real = torch.arange(widest) < torch.tensor(lengths)[:, None]
    log_odds, scores = log_odds.masked_fill(~real, 3.0), scores.masked_fill(~real, -1.0)  # padding holds anything
    agent, base = conditional_logprobs(log_odds, real), base_logprobs(scores, real, 0.8)
    found = kl_rewards(agent, base, 0.1)
    for row, length in enumerate(lengths):
        p = torch.sigmoid(log_odds[row, :length].double()).tolist()
        assert found[row, :length].tolist() == pytest.approx(loop(p, scores[row, :length].tolist(), 0.8, 0.1), abs=1e-4)
        assert found[row, length:].abs().sum() == 0
    assert agent.exp().sum(-1).tolist() == pytest.approx([1.0] * 4)
    assert bool((step_kl(agent, base) >= 0).all())


def test_certainty_loses_nothing() -> None:
    """1 − σ(40) is 0 in float32; the log-probability of what comes after must still be right."""
    log_odds = torch.tensor([40.0, 0.0, -200.0])
    found = conditional_logprobs(log_odds, everything(log_odds))
    assert found.tolist() == pytest.approx([0.0, -40 - math.log(2), -40 - math.log(2) - 200], abs=1e-3)


def test_the_entropy_of_a_decision() -> None:
    found = decision_entropy(torch.tensor([0.0, logit(0.9), 300.0, -300.0]))
    by_hand = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert found.tolist() == pytest.approx([math.log(2), by_hand, 0.0, 0.0], abs=1e-6)


def test_the_answers_reward_goes_back_by_hand() -> None:
    """Three tokens: accepted at once; rejected, accepted; rejected, rejected, accepted."""
    accepted = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool)
    found = with_answer_reward(torch.zeros(6), accepted, 8.0, gamma=0.5, postback=True)
    assert found.tolist() == [2.0, 4.0, 4.0, 8.0, 8.0, 8.0]
    alone = with_answer_reward(torch.full((6,), 0.25), accepted, 8.0, gamma=0.5, postback=False)
    assert alone.tolist() == [0.25] * 5 + [8.25]


def test_the_answers_reward_goes_back_as_in_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(50, generator=generator)
    accepted = torch.rand(50, generator=generator) < 0.4
    accepted[-1] = True
    expected, discounted = rewards.tolist(), -3.0
    expected[-1] += discounted
    for i in range(48, -1, -1):
        if accepted[i]:
            discounted *= 0.9
        expected[i] += discounted
    found = with_answer_reward(rewards, accepted, -3.0, gamma=0.9, postback=True)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_one_transition_gets_the_reward_once() -> None:
    for postback in (True, False):
        found = with_answer_reward(torch.tensor([0.5]), torch.tensor([True]), 2.0, gamma=0.9, postback=postback)
        assert found.tolist() == [2.5]
