"""What an accept-reject agent is rewarded for, token by token: MARA's formulas (IJCAI 2025, arXiv 2505.19743).

Pure functions of tensors. K candidates of one step stand in the order in which the agent is asked about them;
p_i = σ(log-odds_i) is the probability that it accepts candidate i. `real` is True for candidates and False for padding.

Where they differ from the released code: π_agent is renormalised from its own logarithms (the code takes a log-softmax
of the probabilities themselves, which flattens them); π_base is renormalised over the candidates, as π_agent is; the
reward of the whole answer reaches the first transition too (the code's loop stops before it).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

NEVER = -torch.inf


def conditional_logprobs(log_odds: Tensor, real: Tensor) -> Tensor:
    """log π_agent: [..., K] log-odds of acceptance -> [..., K] log-probabilities of being the first accepted.

    π_agent(i) ∝ p_i · Π_{j<i} (1 − p_j), renormalised over the candidates (the chance that none is accepted is shared
    out). In log space from the log-odds, so a p_i near 1 loses nothing. −inf for padding.
    """
    rejected = functional.logsigmoid(-log_odds)
    before = functional.pad(rejected.cumsum(dim=-1)[..., :-1], (1, 0))
    joint = (functional.logsigmoid(log_odds) + before).masked_fill(~real, NEVER)
    return joint - joint.logsumexp(dim=-1, keepdim=True)


def base_logprobs(logprobs: Tensor, real: Tensor, temperature: float) -> Tensor:
    """log π_base: [..., K] at a temperature, renormalised over the candidates; −inf for padding."""
    return torch.log_softmax((logprobs / temperature).masked_fill(~real, NEVER), dim=-1)


def kl_rewards(agent: Tensor, base: Tensor, weight: float) -> Tensor:
    """[..., K] r_i = −weight · (log π_agent(i) − log π_base(i)); 0 for padding (−inf in both)."""
    gap = torch.where(torch.isneginf(agent) | torch.isneginf(base), 0.0, agent - base)
    return -weight * gap


def step_kl(agent: Tensor, base: Tensor) -> Tensor:
    """[...] KL(π_agent ‖ π_base) over the candidates of a step, in nats."""
    gap = torch.where(torch.isneginf(agent) | torch.isneginf(base), 0.0, agent - base)
    return (agent.exp() * gap).sum(dim=-1)


def decision_entropy(log_odds: Tensor) -> Tensor:
    """[...] the entropy of accept or reject, in nats: at most ln 2."""
    accept = torch.sigmoid(log_odds)
    return -(accept * functional.logsigmoid(log_odds) + (1 - accept) * functional.logsigmoid(-log_odds))


def with_answer_reward(rewards: Tensor, accepted: Tensor, reward: float, *, gamma: float, postback: bool) -> Tensor:
    """[T] rewards of an episode's transitions, the reward of the whole answer added.

    `accepted` [T] is True for transitions that accepted a candidate; the last one always did. The last transition gets
    the reward whole. With `postback` every earlier one gets it discounted by γ for each accepted transition from itself
    on, the last not counted: walking back, the discount grows with each accepted token that is passed.
    """
    if not postback:
        return rewards + functional.pad(rewards.new_tensor([reward]), (len(rewards) - 1, 0))
    passed = accepted.long().flip(0).cumsum(0).flip(0) - 1
    return rewards + reward * gamma ** passed.to(rewards.dtype)
