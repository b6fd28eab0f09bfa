"""The agent's network, its files, where it is refused, and how a choice is told."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.agents.test_equality import PROMPTS, world
from tests.tiny import tiny_module
from trimtab.core import Candidates, SamplingParams, Selection
from trimtab.decoding.decoder import Decoder
from trimtab.decoding.transformers_processor import GuidanceProcessor
from trimtab.errors import BaseMismatchError, CheckpointError, NotFiniteError, OptionError
from trimtab.guides.agent import Agent, AgentNetwork, AgentSession, read_released
from trimtab.guides.arm import ARM
from trimtab.mixing.rules import MostAccepted, RandomAccepted
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.storage.loading import load_guide, save_guide
from trimtab.testing import check_guide


def test_the_network_is_the_papers() -> None:
    network = AgentNetwork(4096)
    assert sum(weight.numel() for weight in network.parameters()) == 4_466_434  # "4.47M" in the paper
    states = torch.randn(3, 5, 4096)
    by_hand = torch.nn.functional.layer_norm(states, (4096,), network.ln.weight, network.ln.bias, 1e-5)
    by_hand = (by_hand @ network.linear1.weight.T + network.linear1.bias).clamp(min=0)
    by_hand = (by_hand @ network.linear2.weight.T + network.linear2.bias).clamp(min=0)
    by_hand = by_hand @ network.output_linear.weight.T + network.output_linear.bias
    torch.testing.assert_close(network(states), by_hand)


def test_a_score_is_the_log_odds_of_acceptance() -> None:
    network = AgentNetwork(8, 16)
    hidden = torch.randn(2, 3, 8)
    candidates = Candidates(torch.arange(6).view(2, 3), torch.zeros(2, 3), hidden)
    chances = torch.softmax(network(hidden), -1)[..., 1]
    torch.testing.assert_close(torch.sigmoid(AgentSession(network).score(candidates)), chances)


@pytest.mark.parametrize(
    "model", [TabularModel.random(9, seed=0), HFModel(tiny_module("llama"))], ids=["table", "llama"]
)
def test_the_agent_keeps_the_laws(model: Any) -> None:
    torch.manual_seed(0)
    check_guide(Agent(AgentNetwork(model.hidden_size, 16)), model)


def test_an_agent_comes_back_from_its_directory(tmp_path: Path) -> None:
    model, network = world("llama")
    agent = Agent(network, 0.6, Selection(RandomAccepted(), 0.7, 20, 0.9), "base-name", {"metrics": {"reward": 1.0}})
    save_guide(agent, tmp_path / "agent")
    back = load_guide(tmp_path / "agent")
    assert isinstance(back, Agent)
    assert (back.weight, back.selection, back.trained_on) == (0.6, agent.selection, "base-name")
    assert back.card["metrics"] == {"reward": 1.0}
    for name, tensor in network.state_dict().items():
        assert torch.equal(back.network.state_dict()[name], tensor)
    assert load_guide(tmp_path / "agent", weight=0.3, rule="most", model=model).selection.rule == MostAccepted()
    with pytest.raises(OptionError, match=r"1\.5 is not an acceptance threshold"):
        load_guide(tmp_path / "agent", weight=1.5)
    with pytest.raises(OptionError, match="Accepted: first, most, random"):
        load_guide(tmp_path / "agent", rule="best")
    with pytest.raises(OptionError, match="no prompt of its own"):
        load_guide(tmp_path / "agent", prompt="x")


def _without(path: Path, name: str) -> None:
    (path / name).unlink()


def _truncated(path: Path) -> None:
    os.truncate(path / "model.safetensors", 100)


def _edited(**changes: Any) -> Any:
    def edit(path: Path) -> None:
        card = json.loads((path / "guide.json").read_text())
        card["selection"] |= changes
        (path / "guide.json").write_text(json.dumps(card))

    return edit


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: _without(path, "model.safetensors"), "holds no model.safetensors"),
        (_truncated, "damaged agent"),
        (_edited(rule="nobody"), "damaged agent"),
        (_edited(colour="red"), "damaged agent"),
    ],
)
def test_a_damaged_directory_is_refused(tmp_path: Path, damage: Any, problem: str) -> None:
    save_guide(Agent(AgentNetwork(8, 16)), tmp_path / "agent")
    card = json.loads((tmp_path / "agent" / "guide.json").read_text())
    del card["files"]  # as older cards are; others are refused before anything is read
    (tmp_path / "agent" / "guide.json").write_text(json.dumps(card))
    damage(tmp_path / "agent")
    with pytest.raises(CheckpointError, match=problem):
        load_guide(tmp_path / "agent")


def released(path: Path, change: Any = None) -> Path:
    weights: dict[str, Any] = dict(AgentNetwork(8, 16).state_dict())
    torch.save(weights if change is None else change(weights), path)
    return path


def test_a_released_checkpoint_is_read(tmp_path: Path) -> None:
    path = released(tmp_path / "actor_21000.pth")
    agent = read_released(path, 8)
    expected = torch.load(path, weights_only=True)
    assert all(torch.equal(agent.network.state_dict()[name], tensor) for name, tensor in expected.items())


class Code:
    """What a hostile pickle holds: a call."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.target,))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trap = tmp_path / "actor.pth", tmp_path / "ran"
    torch.save({"ln.weight": Code(str(trap))}, path)
    with pytest.raises(CheckpointError, match="never run"):
        read_released(path, 8)
    path.write_bytes(pickle.dumps(Code(str(trap))))
    with pytest.raises(CheckpointError, match="never run"):
        read_released(path, 8)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "ln.bias"}, "ln.bias is missing or unknown"),
        (lambda w: {**w, "linear3.weight": w["ln.bias"]}, "linear3.weight is missing or unknown"),
        (lambda w: {**w, "linear2.weight": w["linear1.weight"]}, r"linear2.weight has shape \(16, 8\)"),
        (lambda w: {**w, "output_linear.weight": torch.zeros(3, 4)}, r"output_linear.weight has shape \(3, 4\)"),
        (lambda w: {**w, "linear1.weight": torch.zeros(16)}, r"linear1.weight has shape \(16,\)"),
        (lambda w: {**w, "ln.bias": w["ln.bias"] * torch.nan}, "ln.bias holds NaN"),
        (lambda w: list(w.values()), "not a state dict"),
        (lambda w: {**w, "ln.bias": 3}, "not a state dict"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, change: Any, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read_released(released(tmp_path / "actor.pth", change), 8)


def test_another_width_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"states of width 8, not 4096\. Give its own: --width 8"):
        read_released(released(tmp_path / "actor.pth"), 4096)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_released(tmp_path / "nothing.pth", 8)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_released(tmp_path / "text.pth", 8)


def test_an_agent_runs_on_another_base_of_its_width_and_on_no_other() -> None:
    _, network = world("llama")
    agent = Agent(network, trained_on="somebody")
    Decoder(HFModel(tiny_module("qwen2", seed=4)), {"agent": agent})
    narrow = HFModel(tiny_module("llama", hidden_size=16, head_dim=4))
    with pytest.raises(BaseMismatchError, match=r"width 32 \(it was trained on somebody\); the model's have 16"):
        Decoder(narrow, {"agent": agent})


def test_what_a_request_may_ask_of_agents() -> None:
    model, network = world("llama")
    decoder = Decoder(model, {"a": Agent(network), "b": Agent(network, 0.0)})
    with pytest.raises(OptionError, match="a and b both select"):
        decoder.add([5], SamplingParams(weights={"a": 0.5, "b": 0.5}))
    for weight in (1.0, -0.5, 3.0):
        with pytest.raises(OptionError, match="not an acceptance threshold"):
            decoder.add([5], SamplingParams(weights={"a": weight}))
    decoder.add([5], SamplingParams(weights={"a": 0.0, "b": 0.9}))


def test_weight_zero_is_the_base_with_the_bases_defaults() -> None:
    model, network = world("llama")
    decoder = Decoder(model, {"agent": Agent(network), "arm": ARM(model)})
    off = decoder.generate(PROMPTS, weights={"agent": 0.0, "arm": 0.0}, max_new_tokens=8, seed=5, trace=True)
    for ours, theirs in zip(off, Decoder(model).generate(PROMPTS, max_new_tokens=8, seed=5, trace=True), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.trace == theirs.trace


def test_a_choice_tells_what_was_seen_and_why() -> None:
    model, network = world("llama", 0.1)
    decoder = Decoder(model, {"agent": Agent(network)})
    answers = list(
        decoder.generate(PROMPTS, max_new_tokens=10, ignore_eos=True, trace=True, seed=0, num_alternatives=3)
    )
    reasons = set()
    for answer in answers:
        for token, step in zip(answer.token_ids, answer.trace or (), strict=True):
            choice = step.choice
            assert choice is not None
            assert choice.guide == "agent"
            assert choice.trials[choice.index].token_id == token == step.chosen.token_id
            reasons.add(choice.reason)
            logprobs = [trial.logprob for trial in choice.trials]
            assert logprobs == sorted(logprobs, reverse=True)
            if choice.reason == "accepted":
                assert [trial.accepted for trial in choice.trials[: choice.index + 1]] == [False] * choice.index + [
                    True
                ]
            if choice.reason == "none":
                assert choice.index == 0
                assert all(trial.score is not None and trial.score <= 0 for trial in choice.trials)
            if choice.reason == "only":
                assert len(choice.trials) == 1
                assert choice.trials[0].score is None
    assert {"accepted", "none"} <= reasons


def test_the_kl_of_a_sure_choice_is_the_tokens_surprise() -> None:
    model, network = world("llama", 0.3)
    decoder = Decoder(model, {"agent": Agent(network)})
    (answer,) = decoder.generate([PROMPTS[0]], max_new_tokens=6, ignore_eos=True, trace=True, temperature=1.0)
    for step in answer.trace or ():
        assert step.kl == pytest.approx(-step.chosen.base_logprob, abs=1e-5)


class Broken(AgentSession):
    def score(self, candidates: Candidates) -> Tensor:
        scores = super().score(candidates)
        assert candidates.rows is not None
        scores[candidates.rows == 1] = torch.nan
        return scores


def test_a_row_with_nan_scores_fails_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, network = world("llama")
    expected = list(Decoder(model, {"agent": Agent(network)}).generate(PROMPTS[:1], max_new_tokens=5, ignore_eos=True))
    monkeypatch.setattr(Agent, "open", lambda self, beside=None: Broken(self.network))
    decoder = Decoder(model, {"agent": Agent(network)})
    for prompt in PROMPTS[:2]:
        decoder.add(prompt, SamplingParams(max_new_tokens=5, ignore_eos=True))
    steps = [step for _ in range(5) for step in decoder.step()]
    failed = [step for step in steps if step.error is not None]
    assert len(failed) == 1
    assert failed[0].request_id == 1
    assert isinstance(failed[0].error, NotFiniteError)
    assert "Guide agent" in str(failed[0].error)
    assert tuple(step.token_id for step in steps if step.request_id == 0) == expected[0].token_ids


def test_inside_transformers_an_agent_is_refused() -> None:
    model, network = world("llama")
    with pytest.raises(OptionError, match="Use trimtab's Decoder"):
        GuidanceProcessor(model, {"agent": Agent(network)})


def test_a_guide_that_tilts_cannot_ask_for_the_state_after_every_token() -> None:
    model, network = world("llama")

    class Tilting(Agent):
        def bind(self, base: Any) -> Tilting:
            return self

    with pytest.raises(OptionError, match="would be a forward pass a token"):
        Decoder(model, {"agent": Tilting(network, selection=None)})  # type: ignore[arg-type]


def test_a_single_survivor_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    model, network = world("llama")
    monkeypatch.setattr(AgentSession, "score", lambda self, candidates: pytest.fail("asked"))
    decoder = Decoder(model, {"agent": Agent(network)})
    (answer,) = decoder.generate([PROMPTS[0]], max_new_tokens=4, ignore_eos=True, top_k=1, trace=True)
    greedy = Decoder(model).generate([PROMPTS[0]], max_new_tokens=4, ignore_eos=True, temperature=0)
    assert answer.token_ids == next(greedy).token_ids
    choices = [step.choice for step in answer.trace or ()]
    assert [(choice.reason, choice.trials[0].score) for choice in choices if choice] == [("only", None)] * 4
