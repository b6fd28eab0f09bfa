"""Reward models for the guides that read them, and the plain way to compute what those guides should say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import PROMPTS
from trimtab.core import Guide
from trimtab.decoding.decoder import Decoder
from trimtab.models.hf import HFModel
from trimtab.models.rewards.stepwise import AdapterRewards

Reward = Callable[[Sequence[int]], float]


def adapter_rewards(model: HFModel, seed: int = 5) -> AdapterRewards:
    """An adapter of the model and a head, both random; rewards of a few units."""
    head = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(seed)) * 0.3
    return AdapterRewards(random_lora(model, seed), head)


def plain_reward(model: HFModel, rewards: AdapterRewards) -> Reward:
    """The same reward with the adapter merged into a copy of the weights, the whole sequence run anew each time."""
    module = merged(model, rewards.adapter.pairs)

    def reward(token_ids: Sequence[int]) -> float:
        with torch.no_grad():
            states = module.get_decoder()(input_ids=torch.tensor([list(token_ids)]), use_cache=False).last_hidden_state
        return float(states[0, -1] @ rewards.head)

    return reward


def merged(model: HFModel, pairs: dict[str, tuple[Tensor, Tensor]]) -> Any:
    """A copy of the module with adapters merged into its weights."""
    module = copy.deepcopy(model.module)
    for name, (down, up) in pairs.items():
        module.get_submodule(name).weight.data += up @ down
    return module


def next_logprobs(module: Any, token_ids: Sequence[int]) -> Tensor:
    """[V] log-probabilities after a sequence, which is run anew."""
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0, -1]
    return torch.log_softmax(logits.float(), dim=-1)


def check_equal(model: HFModel, guide: Guide, value: Reward, *, num_tokens: int, top_k: int = 10) -> None:
    """Greedy answers of four rows at four weights against the plain way: each candidate's value, and the token.

    The plain step is the argmax of log-probability plus weight times value over the base's top-k. Some tokens must not
    be the base's own argmax, else an idle guide would pass.
    """
    weights = (2.0, 0.7, -1.0, 3.0)
    decoder = Decoder(model, {"r": guide})
    given = [{"r": weight} for weight in weights]
    answers = list(decoder.generate(PROMPTS, weights=given, max_new_tokens=num_tokens, trace=True))
    changed = 0
    for prompt, weight, answer in zip(PROMPTS, weights, answers, strict=True):
        prefix = list(prompt)
        assert answer.trace is not None
        for token, step in zip(answer.token_ids, answer.trace, strict=True):
            logprobs = next_logprobs(model.module, prefix)
            best = logprobs.topk(top_k).indices.tolist()
            values = [value([*prefix, candidate]) for candidate in best]
            assert step.choice is not None
            assert [trial.token_id for trial in step.choice.trials] == best
            assert [trial.score for trial in step.choice.trials] == pytest.approx(values, abs=1e-3, rel=1e-3)
            scores = [float(logprobs[one]) + weight * worth for one, worth in zip(best, values, strict=True)]
            assert token == best[max(range(top_k), key=scores.__getitem__)]
            changed += token != best[0]
            prefix.append(token)
    assert changed > 0
