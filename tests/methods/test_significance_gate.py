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
from trimtab.engines.vllm.sampling import check_params
from trimtab.errors import OptionError
from trimtab.evaluation.comparison.recipe import MethodSpec
from trimtab.evaluation.comparison.records import Key, Row
from trimtab.evaluation.comparison.summary import Cell
from trimtab.evaluation.report import notes
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import AdapterARM
from trimtab.methods.catalogue import build_policy
from trimtab.methods.checking import source_problem
from trimtab.mixing.rules import ACCEPTING_RULES, FirstAccepted, WeighedCandidates
from trimtab.mixing.significance import certainty
from trimtab.models.hf import HFModel
from trimtab.storage.loading import save_guide

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
    assert closed.num_needed == {"a": first.num_needed + 39}
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


WEIGHS = replace(agent(), selection=Selection(WeighedCandidates()))


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        (
            {"g": "significance:1"},
            "^gates gives guide g significance:1, and it tilts .* entropy, margin, random and bet.$",
        ),
        ({"w": "significance:1"}, "it weighs candidates .* accepts or rejects none.*: entropy, margin and random.$"),
        ({"a": "bet:0.1"}, "no policy to bet against. Accepted for it: entropy, margin, random and significance.$"),
        ({"a": "significance:-1"}, "The gate significance takes a finite number of at least 0, not '-1'"),
        ({"a": "significance:inf"}, "The gate significance takes a finite number"),
        ({"a": "significance:1,random:0.5"}, "The gate significance takes a finite number"),
        ({"a": "significance"}, "give RULE:NUMBER"),
        ({"other": "significance:1"}, "Unknown guide 'other'"),
    ],
)
def test_gates_that_mean_nothing_are_refused(gates: dict[str, str], words: str) -> None:
    guides = {"g": AdapterARM(random_lora(MODEL, 3)), "a": agent(), "w": WEIGHS}
    weights = dict.fromkeys(guides, 0.0)
    with pytest.raises(OptionError, match=words):
        list(Decoder(MODEL, guides).generate([PROMPTS[0]], gates=gates, weights=weights, max_new_tokens=2))


def test_vllm_refuses_by_name() -> None:
    with pytest.raises(OptionError, match="gates"):
        check_params(gated(1.0))


def test_the_method_is_the_agent_behind_its_gate_and_chance_is_its_control(tmp_path: Any) -> None:
    save_guide(agent(), tmp_path / "a")
    asked = SamplingParams(max_new_tokens=30, ignore_eos=True, trace=True, temperature=1.0, top_k=3)
    path = str(tmp_path / "a")
    found = {}
    for gate in ("significance:1.2", "random:0.5", "random:0"):
        assert source_problem("gated", {"path": path, "gate": gate}, [0.5]) == ""
        policy = build_policy(MODEL, "gated", {"path": path, "gate": gate})
        found[gate] = next(policy.answer([PROMPTS[0]], 0.5, asked, [5]))
        plain = replace(asked, seed=5, weights={"guide": 0.5}, gates={"guide": gate}, temperature=0.0)
        [expected] = Decoder(MODEL, {"guide": agent()}).answers([(PROMPTS[0], replace(plain, top_k=None, top_p=None))])
        assert found[gate].token_ids == expected.token_ids
        assert found[gate].acted == expected.acted
    [base] = Decoder(MODEL).answers([(PROMPTS[0], replace(asked, temperature=0.0))])
    assert found["random:0"].token_ids == base.token_ids  # where it is closed, the base's first candidate


@pytest.mark.parametrize(
    ("options", "strength", "words"),
    [
        ({"gate": "bet:0.1"}, 0.5, "is a guide of kind agent, and it selects among candidates"),
        ({"gate": "significance:1"}, 1.0, "1 is not an acceptance threshold"),
        ({"gate": "random:0.5"}, 2.0, "2 is not an acceptance threshold"),
        ({"gate": "significance:1", "form": "shift"}, 0.5, "is an agent, which has no form; leave form out"),
        ({"gate": "significance:1", "guide_base": "x"}, 0.5, "is an agent, which has no guide_base"),
        ({"gate": "significance:1", "path": 'prompt:"Be kind."'}, 0.5, "is a guide of kind prompt, and it tilts"),
    ],
)
def test_what_the_method_cannot_do_is_said_before_a_model_is_loaded(
    options: dict[str, str], strength: float, words: str, tmp_path: Any
) -> None:
    save_guide(agent(), tmp_path / "a")
    assert words in source_problem("gated", {"path": str(tmp_path / "a"), **options}, [strength])


def test_the_rate_leaves_out_tokens_with_a_single_candidate() -> None:
    answer = answered(gated(1.5, top_k=None, top_p=0.3), agent())
    said = reasons(answer)
    asked = [reason for reason in said if reason != "only"]
    assert 0 < len(asked) < len(said) == 40
    assert asked.count("insignificant") > 0
    assert answer.acted == {"a": sum(reason != "insignificant" for reason in asked) / len(asked)}
    choices = [step.choice for step in answer.trace or () if step.choice]
    assert all(one.significance is None and one.num_needed == 0 for one in choices if one.reason == "only")
    past = [one.significance for one in choices if one.significance is not None]
    for index, one in enumerate(one for one in choices if one.significance is not None):
        window = past[max(0, index - 10) : index]
        assert one.least_significance == pytest.approx(1.5 * sum(window) / len(window) if window else 0.0)


def test_the_surprisal_is_that_of_the_base_as_far_as_the_request_leaves_it() -> None:
    """As with the other gates: tokens that a mask drops are not what the base is about to say."""
    session = MODEL.open()
    session.admit([PROMPTS[0]])
    base = session.logprobs()[0]
    kept = base.masked_fill(base < base.max() + math.log(0.1), -torch.inf)
    expected = -torch.log_softmax(kept, -1).max() / math.log(len(base))
    answer = answered(gated(1.0, max_new_tokens=1, plausibility=0.1), agent())
    choice = answer.trace and answer.trace[0].choice
    assert choice
    assert choice.significance
    score = choice.trials[0].score
    assert score is not None
    assert choice.significance == pytest.approx(float(certainty(torch.tensor(score)) * expected), rel=1e-4)
    assert expected < -base.max() / math.log(len(base)) - 0.01


def cell(name: str, method: str, options: dict[str, str], acted: float, needed: int) -> Cell:
    rows = tuple(
        Row(Key(name, 0.5, 0, "test", index), "p", "t", (1, 2, 3, 4), "eos", {}, 1.0, "exact", -3.0, *about)
        for index, about in enumerate([({"guide": acted}, {"guide": needed})] * 3)
    )
    return Cell(MethodSpec(name, method, (0.5,), options=options), 0.5, rows)


def test_a_report_says_what_the_gate_saved_beside_no_gate_and_beside_chance() -> None:
    gated_cell = cell("gate", "gated", {"path": "a", "gate": "significance:1"}, 0.4, 6)
    agent_cell = cell("agent", "mara", {"guide": "a"}, 1.0, 12)
    chance = cell("chance", "gated", {"path": "a", "gate": "random:0.4"}, 0.41, 5)
    other = cell("other", "mara", {"guide": "b"}, 1.0, 20)
    assert notes._candidates([gated_cell, other, agent_cell, chance]) == {
        "Candidates looked at": "gate at strength 0.5 1.50 a token (50% fewer than agent at strength 0.5, 20% more "
        "than chance at strength 0.5); other at strength 0.5 5.00 a token; agent at strength 0.5 3.00 a token; chance "
        "at strength 0.5 1.25 a token (58% fewer than agent at strength 0.5). Counted up to the one that decides"
    }
    assert notes._saved(3.0, 3.001) == "as many as"
    assert notes._without_control([gated_cell, chance]) == []
    [said] = notes._without_control([gated_cell, agent_cell])
    assert "random:0.4" in said
    assert notes._candidates([Cell(other.spec, 0.5, tuple(replace(row, num_needed={}) for row in other.rows))]) == {}
