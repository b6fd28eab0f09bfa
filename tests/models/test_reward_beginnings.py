"""Answers to one prompt share the reading of it, and get the rewards that they get alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.tiny_rewards import tiny_reward_model
from trimtab.core import Prompt
from trimtab.models.forward.prefixes import LEAST
from trimtab.models.rewards.beginnings import beginnings
from trimtab.models.rewards.whole import RewardModel

LONG = " ".join(f"w{index % 12}" for index in range(40))
OTHER = " ".join(f"w{11 - index % 12}" for index in range(30))
PROMPTS: list[Prompt] = [LONG, OTHER, LONG, "w3", LONG, OTHER]
ANSWERS = ["w4", "w5 w6 w7", "w1 w2 w3 w4 w5 w6", "w2", "w9 w8", "w1"]


def _num_read(model: RewardModel) -> list[int]:
    """Tokens that each pass is given, padding counted."""
    seen: list[int] = []

    def look(module: Any, args: Any, options: dict[str, Any]) -> None:
        seen.append((args[0] if args else options["input_ids"]).numel())

    model.module.base_model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("batch_tokens", [60, 4096])
def test_answers_to_one_prompt_are_rewarded_as_alone_and_read_it_once(family: str, batch_tokens: int) -> None:
    model = tiny_reward_model(family, batch_tokens=batch_tokens)
    alone = [model.rewards([prompt], [answer])[0] for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    seen = _num_read(model)
    assert model.rewards(PROMPTS, ANSWERS) == pytest.approx(alone, abs=1e-5)
    if batch_tokens == 4096:
        assert sum(seen) < sum(len(row) for row in model.token_ids(PROMPTS, ANSWERS)) - 70, "two long prompts, once"


def test_states_are_those_of_the_last_tokens() -> None:
    model = tiny_reward_model("llama")
    alone = [model.states([prompt], [answer])[0] for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    torch.testing.assert_close(model.states(PROMPTS, ANSWERS), torch.stack(alone), atol=1e-5, rtol=0)


def test_a_window_or_an_encoder_shares_nothing() -> None:
    for family in ("bert", "mistral"):
        model = tiny_reward_model(family)
        assert not model._shares
        alone = [model.rewards([prompt], [answer])[0] for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
        assert model.rewards(PROMPTS, ANSWERS) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("seed", range(30))
def test_groups_share_what_they_say_and_never_a_last_token(seed: int) -> None:
    chance = random.Random(seed)
    heads = [[chance.randrange(3) for _ in range(chance.randrange(60))] for _ in range(4)]
    rows = [chance.choice(heads) + [chance.randrange(3) for _ in range(chance.randrange(1, 9))] for _ in range(20)]
    groups = beginnings(rows)
    members = [index for _, group in groups for index in group]
    assert len(members) == len(set(members)), "a row is in one group at most"
    for length, group in groups:
        assert length >= LEAST
        assert len(group) > 1
        assert len({tuple(rows[index][:length]) for index in group}) == 1
        assert all(len(rows[index]) > length for index in group)


def test_rows_of_one_prompt_go_together_whatever_template_others_share() -> None:
    template, first, second = [1] * 20, [2] * 40, [3] * 40
    rows = [template + head + [tail] for tail in range(3) for head in (first, second)]
    assert beginnings(rows) == [(60, [0, 2, 4]), (60, [1, 3, 5])]
    assert beginnings([[1, 2, 3], [1, 2, 4]]) == []
    assert beginnings([]) == []
