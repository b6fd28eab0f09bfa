"""Transfer-Q: equal to completing and scoring the candidates one by one, direct and indirect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.guides.rewards import adapter_rewards, check_equal, merged, next_logprobs, plain_reward
from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import PROMPTS, tiny_model
from trimtab.errors import BaseMismatchError, OptionError
from trimtab.guides.transfer_q import RolloutGuide, Rollouts
from trimtab.testing import check_guide


def completed(module: Any, eos_ids: frozenset[int], token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """A greedy completion, the whole sequence run anew for each token."""
    done = list(token_ids)
    for _ in range(num_tokens):
        if done[-1] in eos_ids:
            break
        done.append(int(next_logprobs(module, done).argmax()))
    return done


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_direct_equals_the_plain_way(family: str) -> None:
    model = tiny_model(family)
    rewards, policy = adapter_rewards(model), random_lora(model, 8)
    reward, module = plain_reward(model, rewards), merged(model, policy.pairs)
    guide = RolloutGuide(rewards, policy, num_tokens=4)
    check_equal(model, guide, lambda ids: reward(completed(module, model.eos_ids, ids, 4)), num_tokens=3)


def test_indirect_equals_the_plain_way() -> None:
    model = tiny_model("llama")
    target, trained, policy = adapter_rewards(model, 5), adapter_rewards(model, 6), random_lora(model, 8)
    r2, r1, module = plain_reward(model, target), plain_reward(model, trained), merged(model, policy.pairs)

    def value(ids: Sequence[int]) -> float:
        text = completed(module, model.eos_ids, ids, 3)
        return math.exp((r2(text) - r1(text)) / 2) * r2(text)

    check_equal(model, RolloutGuide(target, policy, trained, num_tokens=3), value, num_tokens=3)


def test_the_base_itself_completes_where_no_policy_is_given() -> None:
    model = tiny_model("llama")
    rewards = adapter_rewards(model)
    reward = plain_reward(model, rewards)
    guide = RolloutGuide(rewards, num_tokens=2)
    check_equal(model, guide, lambda ids: reward(completed(model.module, model.eos_ids, ids, 2)), num_tokens=3)


def test_a_completion_ends_at_an_end_of_sequence_token_and_leaves_no_row_behind() -> None:
    model = tiny_model("llama")
    prompt = [5, 9]
    ends = frozenset({int(next_logprobs(model.module, [*prompt, 7]).argmax())})

    class Ending:
        eos_ids = ends

    session = model.open()
    session.admit([prompt])
    made: list[int] = []
    rollouts = Rollouts(Ending(), session, 5, made.append)  # type: ignore[arg-type]
    texts = rollouts.complete(torch.tensor([0, 0]), [7, next(iter(ends))])
    assert texts == [[7, *ends], list(ends)]
    assert made == [1]
    assert session.num_rows == 1


def test_the_laws() -> None:
    model = tiny_model("llama")
    check_guide(RolloutGuide(adapter_rewards(model), random_lora(model, 8), num_tokens=2), model, PROMPTS, num_steps=3)


def test_no_completion_is_args_and_less_is_refused() -> None:
    model = tiny_model("llama")
    rewards = adapter_rewards(model)
    reward = plain_reward(model, rewards)
    check_equal(model, RolloutGuide(rewards, num_tokens=0), reward, num_tokens=3)
    with pytest.raises(OptionError, match="num_tokens"):
        RolloutGuide(rewards, num_tokens=-1)
    with pytest.raises(BaseMismatchError, match="bind"):
        RolloutGuide(rewards, random_lora(model, 8)).open()
