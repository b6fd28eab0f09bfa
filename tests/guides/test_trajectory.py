"""ARGS: equal to the plain way, one forward pass of the reward model a step, and the laws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.guides.rewards import adapter_rewards, check_equal, next_logprobs, plain_reward
from tests.laws.tiny_models import FAMILIES, PROMPTS, tiny_model
from tests.tiny import tiny_module, tiny_tokenizer
from tests.tiny_rewards import tiny_reward_model, write_reward_model
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import CompatibilityError, VocabularyMismatchError
from trimtab.guides.args import TrajectoryGuide
from trimtab.models.hf import HFModel
from trimtab.models.rewards.stepwise import token_rewards
from trimtab.storage.loading import load_guide
from trimtab.testing import check_guide


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_the_plain_way_token_for_token(family: str) -> None:
    model = tiny_model(family)
    rewards = adapter_rewards(model)
    check_equal(model, TrajectoryGuide(rewards), plain_reward(model, rewards), num_tokens=5)


def test_stochastic_is_the_softmax_of_the_scores_over_the_temperature() -> None:
    model = tiny_model("llama")
    rewards = adapter_rewards(model)
    plain = plain_reward(model, rewards)
    guide = TrajectoryGuide(rewards).at(temperature=0.7)
    answer = next(Decoder(model, {"r": guide}).generate([PROMPTS[0]], seed=4, max_new_tokens=4, trace=True))
    prefix = list(PROMPTS[0])
    assert answer.trace is not None
    for step in answer.trace:
        logprobs = next_logprobs(model.module, prefix)
        best = logprobs.topk(10).indices.tolist()
        scores = torch.tensor([float(logprobs[token]) + plain([*prefix, token]) for token in best])
        policy = torch.log_softmax(scores, dim=-1)
        assert step.choice is not None
        assert step.choice.reason == "weighed"
        assert step.chosen.mixed_logprob == pytest.approx(float(policy[best.index(step.chosen.token_id)]), abs=1e-4)
        prefix.append(step.chosen.token_id)


def test_a_reward_model_of_its_own_says_the_same_from_its_cache() -> None:
    rewards = token_rewards(tiny_reward_model())
    ids = torch.tensor([[3, 9, 20], [4, 8, 11]])
    session = rewards.open()
    session.admit([[5, 6, 7, 8], [9]])
    before = session.peek(ids)
    session.advance(torch.tensor([0, 1]), ids[:, 1])
    for row, prompt in enumerate(([5, 6, 7, 8], [9])):
        for column in range(3):
            fresh = rewards.open()
            fresh.admit([[*prompt, int(ids[row, column])]])
            assert float(before[row, column]) == pytest.approx(float(fresh.rewards()[0]), abs=1e-4)
    assert torch.allclose(session.rewards(), before[:, 1], atol=1e-4)


def test_a_step_costs_one_forward_pass_where_the_adapter_is_the_bases_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HFModel(tiny_module("llama"))
    passes: list[tuple[int, ...]] = []
    forward = HFModel.forward

    def counted(self: HFModel, token_ids: torch.Tensor, *rest: object) -> torch.Tensor:
        passes.append(tuple(token_ids.shape))
        return forward(self, token_ids, *rest)  # type: ignore[arg-type]

    decoder = Decoder(model, {"r": TrajectoryGuide(adapter_rewards(model))})
    decoder.add(PROMPTS[0], SamplingParams(max_new_tokens=6, ignore_eos=True))
    monkeypatch.setattr(HFModel, "forward", counted)
    for _ in range(5):
        decoder.step()
    assert passes == [(2, len(PROMPTS[0])), *[(2, 10)] * 5]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_laws(family: str) -> None:
    model = tiny_model(family)
    check_guide(TrajectoryGuide(adapter_rewards(model)), model, PROMPTS, num_steps=3)


def test_a_directory_of_a_reward_model_loads_as_a_guide(tmp_path: Path) -> None:
    base = HFModel(tiny_module("llama"), tiny_tokenizer())
    guide = load_guide(write_reward_model(tmp_path / "rewards"), model=base, weight=1.5)
    assert isinstance(guide, TrajectoryGuide)
    assert guide.weight == 1.5
    answer = next(Decoder(base, {"r": guide}).generate("w3 w4", max_new_tokens=4))
    assert answer.token_ids


def test_what_cannot_be_read_token_by_token_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="token by token"):
        token_rewards(tiny_reward_model("bert"))


def test_a_reward_model_of_another_vocabulary_is_refused() -> None:
    base = HFModel(tiny_module("llama"), tiny_tokenizer([f"v{index}" for index in range(59)]))
    with pytest.raises(VocabularyMismatchError):
        Decoder(base, {"r": TrajectoryGuide(token_rewards(tiny_reward_model()))})
