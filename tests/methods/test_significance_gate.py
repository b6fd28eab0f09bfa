"""TUSA's gate for agents that accept or reject, against a plain loop over its rule and the laws that it keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import PROMPTS, tiny_model
from trimtab.answers import Answer
from trimtab.core import SamplingParams, Selection
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import AdapterARM
from trimtab.mixing.rules import ACCEPTING_RULES, FirstAccepted
from trimtab.models.hf import HFModel

MODEL = tiny_model("llama")
ASKED = SamplingParams(max_new_tokens=40, ignore_eos=True, trace=True, seed=0, temperature=0.7, top_k=8, top_p=1.0)


def agent(seed: int = 0, rule: str = "first") -> Agent:
    """Random weights, scaled so that it is sure of some candidates and unsure of others."""
    torch.manual_seed(seed)
    network = AgentNetwork(MODEL.hidden_size, 32)
    with torch.no_grad():
        network.output_linear.weight.mul_(12)
    return Agent(network.eval().requires_grad_(False), selection=Selection(ACCEPTING_RULES[rule]()))


def answered(params: SamplingParams, guide: Agent, prompt: list[int] = PROMPTS[0]) -> Answer:
    [answer] = Decoder(MODEL, {"a": guide}).answers([(prompt, params)])
    return answer


@dataclass
class Plain:
    """What a loop of one row and one candidate at a time came to."""

    token: int
    significance: float
    least: float
    num_looked: int
    is_open: bool


def plain_loop(model: HFModel, guide: Agent, prompt: list[int], alpha: float, num: int) -> list[Plain]:
    """The gate from its definition: C, S, R and τ of each token, candidates one after another."""
    steps: list[Plain] = []
    tokens = list(prompt)
    for _ in range(num):
        session = model.open()
        session.admit([tokens])
        logprobs = session.logprobs()[0]
        candidates = logprobs.topk(8).indices.tolist()

        def accepts(token: int, session: Any = session) -> float:
            state = session.peek(torch.tensor([[token]]))[0, 0]
            return float(torch.softmax(guide.network(state), -1)[1])

        chance = accepts(candidates[0])
        certainty = sum(p * math.log(p / 0.5) for p in (chance, 1 - chance) if p > 0)
        significance = certainty * -float(logprobs[candidates[0]]) / math.log(len(logprobs))
        past = [step.significance for step in steps][-10:]
        least = alpha * sum(past) / len(past) if past else 0.0
        index, looked = 0, 1
        if significance >= least and chance <= 0.5:
            while index + 1 < len(candidates):
                index, looked = index + 1, looked + 1
                if accepts(candidates[index]) > 0.5:
                    break
            else:
                index = 0  # the rule's fall-back
        steps.append(Plain(candidates[index], significance, least, looked, significance >= least))
        tokens.append(candidates[index])
    return steps


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_tokens_thresholds_and_looks_are_those_of_a_plain_loop(alpha: float) -> None:
    guide = agent()
    answer = answered(replace(ASKED, gates={"a": f"significance:{alpha}"}), guide.with_looks((1,)))
    plain = plain_loop(MODEL, guide, PROMPTS[0], alpha, 40)
    assert list(answer.token_ids) == [step.token for step in plain]
    for traced, step in zip(answer.trace or (), plain, strict=True):
        choice = traced.choice
        assert choice is not None
        assert choice.significance == pytest.approx(step.significance, rel=1e-3, abs=1e-7)
        assert choice.least_significance == pytest.approx(step.least, rel=1e-3, abs=1e-7)
        assert sum(trial.score is not None for trial in choice.trials) == step.num_looked
        assert (choice.reason == "insignificant") == (not step.is_open)
    opened = sum(step.is_open for step in plain)
    assert plain[0].is_open
    assert 0 < opened < 40
    assert answer.acted == {"a": opened / 40}
    assert any(step.is_open and step.num_looked > 1 for step in plain)
    assert any(
        not step.is_open and trace.choice and not trace.choice.trials[0].accepted
        for step, trace in zip(plain, answer.trace or (), strict=True)
    )
