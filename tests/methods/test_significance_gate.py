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


def gated(alpha: float, **changes: Any) -> SamplingParams:
    return replace(ASKED, gates={"a": f"significance:{alpha}"}, **changes)


@pytest.mark.parametrize("rule", ["first", "random", "most"])
def test_at_0_the_agent_is_as_without_a_gate_and_far_above_1_only_the_first_token_is_its_own(rule: str) -> None:
    guide = agent(rule=rule)
    plain = answered(ASKED, guide)
    assert answered(gated(0.0), guide).token_ids == plain.token_ids
    assert plain.acted == answered(gated(0.0), guide).acted == {"a": 1.0}
    closed = answered(gated(1e9), guide)
    assert closed.token_ids[0] == plain.token_ids[0]
    greedy = replace(ASKED, temperature=0.0, weights={"a": 0.0})
    rest = answered(replace(greedy, max_new_tokens=39), guide, [*PROMPTS[0], closed.token_ids[0]])
    assert closed.token_ids[1:] == rest.token_ids
    assert closed.acted == {"a": 1 / 40}
    first = closed.trace and closed.trace[0].choice
    assert first
    assert closed.num_verdicts == {"a": first.num_needed + 39}
    shown = [trial for step in (closed.trace or ())[1:] if step.choice for trial in step.choice.trials]
    assert sum(trial.score is not None for trial in shown) == 39  # no pass looked at another one either


@pytest.mark.parametrize("rule", ["first", "random", "most"])
def test_how_looks_are_cut_changes_no_token_and_no_threshold(rule: str) -> None:
    seen = []
    for looks in ((1,), (2, 3), (), None):
        answer = answered(
            gated(1.0), replace(agent(rule=rule), selection=Selection(ACCEPTING_RULES[rule](), looks=looks))
        )
        choices = [step.choice for step in answer.trace or () if step.choice]
        seen.append(
            (answer.token_ids, [(one.reason, one.num_needed, round(one.least_significance or 0, 5)) for one in choices])
        )
    assert all(one == seen[0] for one in seen[1:])


def test_where_the_gate_is_closed_a_rule_that_falls_back_on_the_last_candidate_still_gives_the_first() -> None:
    guide = replace(agent(), selection=Selection(FirstAccepted(fallback="last")))
    answer = answered(gated(1e9), guide)
    choices = [step.choice for step in answer.trace or () if step.choice]
    assert [choice.index for choice in choices[1:]] == [0] * 39
    assert any(not choice.trials[0].accepted for choice in choices[1:])


def test_a_request_is_the_same_alone_and_in_company_that_joins_and_ends() -> None:
    guides = {"a": agent(), "b": agent(1, "most"), "g": AdapterARM(random_lora(MODEL, 3))}
    off = {"a": 0.0, "b": 0.0, "g": 0.0}
    asked = [
        (prompt, replace(ASKED, max_new_tokens=length, seed=seed, weights={**off, **weights}, gates=gates))
        for seed, (prompt, length, weights, gates) in enumerate(
            [
                (PROMPTS[0], 30, {"a": 0.5}, {"a": "significance:1.2"}),
                (PROMPTS[1], 7, {"a": 0.5}, {}),
                (PROMPTS[2], 25, {"b": 0.4}, {"b": "significance:1.5"}),
                (PROMPTS[3], 12, {"a": 0.6, "g": 1.0}, {"a": "significance:1.5", "g": "entropy:2"}),
                (PROMPTS[0], 20, {"a": 0.5}, {"a": "random:0.5"}),
                (PROMPTS[1], 18, {"a": 0.3}, {"a": "significance:1.2"}),
                (PROMPTS[2], 5, {"g": 2.0}, {"a": "significance:0.5"}),  # on a guide that does not run
                (PROMPTS[3], 28, {"a": 0.5}, {"a": "significance:1.2"}),
            ]
        )
    ]
    alone = [next(Decoder(MODEL, guides).answers([one])) for one in asked]
    for max_rows in (3, 8):
        together = list(Decoder(MODEL, guides, max_rows=max_rows).answers(asked))
        assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
        assert [reasons(answer) for answer in together] == [reasons(answer) for answer in alone]
    assert all("insignificant" in reasons(alone[index]) for index in (0, 2, 3, 5, 7))
    assert (
        alone[6].token_ids
        == next(Decoder(MODEL, guides).answers([(asked[6][0], replace(asked[6][1], gates={}))])).token_ids
    )


def reasons(answer: Answer) -> list[str]:
    return [step.choice.reason for step in answer.trace or () if step.choice]


def test_beside_drafts_of_others_and_after_a_fault_the_significances_are_those_of_the_answer() -> None:
    guide = agent()
    alone = answered(gated(1.2), guide)
    decoder = Decoder(MODEL, {"a": guide})
    drafting = replace(ASKED, weights={"a": 0.0}, draft="lookup", draft_tokens=3, temperature=0.0)
    asked = [(PROMPTS[0], gated(1.2)), ([5, 6, 5, 6, 5, 6, 5], drafting)]
    [first, _] = decoder.answers(asked)
    assert (first.token_ids, reasons(first)) == (alone.token_ids, reasons(alone))
    ids = [decoder.add(prompt, params) for prompt, params in asked]
    told: list[int | None] = []
    ended: set[int] = set()
    for number in range(200):
        steps = decoder.step()
        told += [step.token_id for step in steps if step.request_id == ids[0]]
        ended |= {step.request_id for step in steps if step.finish_reason}
        if ended == set(ids):
            break
        if number % 7 == 3:
            decoder._requeue(decoder._unfinished())  # what a fault does: the batch is made anew from the requests
    assert tuple(told) == alone.token_ids


def test_a_request_that_drafts_behind_an_agent_is_refused_as_without_a_gate() -> None:
    with pytest.raises(OptionError, match="Guide a selects the token, so none can be drafted"):
        answered(gated(1.0, draft="lookup"), agent())
