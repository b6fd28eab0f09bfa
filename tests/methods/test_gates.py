"""Gates against plain loops over their rules: where a guide acts, the conservative bet, what a closed gate saves."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import PROMPTS, tiny_model
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.engines.vllm.sampling import check_params
from trimtab.errors import OptionError
from trimtab.evaluation.comparison.recipe import MethodSpec
from trimtab.evaluation.comparison.records import Key, Row
from trimtab.evaluation.comparison.summary import Cell
from trimtab.evaluation.report import notes
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.methods.catalogue import build_policy, check_method
from trimtab.mixing.forms import SHIFT
from trimtab.mixing.gates import bet
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.storage.loading import save_guide

BASE, TUNED, OTHER = (TabularModel.random(9, seed=seed) for seed in (0, 1, 2))
ASKED = SamplingParams(max_new_tokens=40, ignore_eos=True, trace=True, seed=3, weights={"g": 2.0})


def decoder(**guides: Any) -> Decoder:
    return Decoder(BASE, guides or {"g": ARM(TUNED)})


def answered(params: SamplingParams, **guides: Any) -> Any:
    [answer] = decoder(**guides).answers([([1, 2], params)])
    assert answer.trace is not None
    return answer


def is_open(rule: str, number: float, base: torch.Tensor) -> bool:
    """The two rules on the base's probabilities, from their definitions."""
    chances = sorted(base.exp().tolist(), reverse=True)
    if rule == "entropy":
        return -sum(p * torch.tensor(p).log().item() for p in chances) > number
    return chances[0] - chances[1] < number


@pytest.mark.parametrize(("rule", "number"), [("entropy", 1.9), ("margin", 0.1)])
def test_where_the_gate_is_open_the_mix_is_the_formula_and_elsewhere_it_is_the_base(rule: str, number: float) -> None:
    answer = answered(replace(ASKED, gates={"g": f"{rule}:{number}"}))
    opened = []
    for count, step in enumerate(answer.trace):
        prefix = (1, 2, *answer.token_ids[:count])
        base, guide = BASE.next_logprobs(prefix), TUNED.next_logprobs(prefix)
        opened.append(is_open(rule, number, base))
        policy = torch.log_softmax(base + 2 * guide, dim=-1) if opened[-1] else base
        assert step.chosen.mixed_logprob == pytest.approx(float(policy[step.chosen.token_id]), abs=1e-5)
        assert step.kl == pytest.approx(float((policy.exp() * (policy - base)).sum()), abs=1e-5)
        assert ("g" in step.chosen.guide_scores) == opened[-1]
    assert 0 < sum(opened) < len(opened)
    assert answer.acted == {"g": sum(opened) / len(opened)}


def test_a_gate_of_chance_opens_at_its_rate_by_the_seed_and_the_guides_name_alone() -> None:
    params = replace(ASKED, max_new_tokens=2000, gates={"g": "random:0.3", "h": "random:0.3"}, weights={})
    guides = {"g": ARM(TUNED), "h": ARM(OTHER)}
    steps = answered(params, **guides).trace
    opened = {name: [name in step.acting for step in steps] for name in guides}
    for name in guides:
        assert sum(opened[name]) / 2000 == pytest.approx(0.3, abs=0.04)  # four standard errors
    both = sum(g and h for g, h in zip(opened["g"], opened["h"], strict=True)) / 2000
    assert both == pytest.approx(0.09, abs=0.03)
    short = replace(params, max_new_tokens=40, weights={"h": 0.0})
    assert [step.acting for step in answered(short, **guides).trace] == [
        {"g"} if g else set() for g in opened["g"][:40]
    ]
    other = answered(replace(short, seed=4), **guides).trace
    assert [bool(step.acting) for step in other] != opened["g"][:40]


@pytest.mark.parametrize(
    ("gate", "same_as"), [("random:0", 0.0), ("random:1", 2.0), ("entropy:0", 2.0), ("margin:1", 2.0)]
)
def test_the_ends_are_the_base_and_the_guide_itself(gate: str, same_as: float) -> None:
    gated = answered(replace(ASKED, gates={"g": gate}))
    plain = answered(replace(ASKED, weights={"g": same_as}))
    assert gated.token_ids == plain.token_ids
    assert [step.kl for step in gated.trace] == [step.kl for step in plain.trace]


def test_each_request_of_a_batch_has_its_own_gates_and_drafts_change_nothing() -> None:
    guides = {"g": ARM(TUNED), "h": ARM(OTHER, form=SHIFT)}
    gates: list[dict[str, str]] = [
        {},
        {"g": "entropy:1.9"},
        {"h": "margin:0.1"},
        {"g": "random:0.5", "h": "random:0.5"},
        {"g": "bet:0.2", "h": "entropy:1.9"},
        {"g": "entropy:9"},
    ]
    asked = [replace(ASKED, weights={"g": 1.0, "h": 2.0}, gates=one) for one in gates]
    alone = [answered(params, **guides) for params in asked]
    together = list(Decoder(BASE, guides).answers([([1, 2], params) for params in asked]))
    assert [answer.trace for answer in together] == [answer.trace for answer in alone]
    drafted = list(
        Decoder(BASE, guides).answers(
            [([1, 2], replace(params, draft=draft, draft_tokens=3)) for params in asked for draft in ("lookup", "g")]
        )
    )
    assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in alone for _ in range(2)]


@pytest.mark.parametrize("slack", [0.0, 0.2, 1.0])
def test_the_bet_is_the_two_draws_of_its_paper(slack: float) -> None:
    answer = answered(replace(ASKED, gates={"g": f"bet:{slack}"}))
    for count, step in enumerate(answer.trace):
        prefix = (1, 2, *answer.token_ids[:count])
        b = BASE.next_logprobs(prefix).exp()
        q = torch.softmax(BASE.next_logprobs(prefix) + 2 * TUNED.next_logprobs(prefix), dim=-1)
        stands = b >= q.max() - slack
        policy = torch.where(stands, b, 0.0) + b[~stands].sum() * q
        assert float(policy.sum()) == pytest.approx(1.0, abs=1e-5)
        assert step.chosen.mixed_logprob == pytest.approx(float(policy[step.chosen.token_id].log()), abs=1e-5)
        assert step.kl == pytest.approx(float((policy * (policy.log() - b.log())).sum()), abs=1e-5)


def test_a_bet_keeps_what_is_forbidden_forbidden_and_a_dead_end_one() -> None:
    base = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]).log()
    mixed = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).log()
    found = bet(base, mixed, torch.tensor([1.0, 1.0]))
    assert found[0].exp().tolist() == pytest.approx([0.0, 1.0, 0.0])  # a draw that the mix forbids does not stand
    assert torch.isneginf(found[1]).all()


def test_a_bet_on_a_guide_at_weight_0_is_the_base() -> None:
    off = replace(ASKED, weights={"g": 0.0})
    assert answered(replace(off, gates={"g": "bet:0.1"})).trace == answered(off).trace


def test_a_guide_of_its_own_is_not_run_where_every_gate_is_closed(monkeypatch: Any) -> None:
    model = tiny_model("llama")
    small = HFModel(copy.deepcopy(model.module))
    guide = ARM(small)
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, trace=True, seed=0, weights={"g": 1.0})
    sessions: list[Any] = []
    opened = type(small).open

    def noting(self: Any, beside: Any = None) -> Any:
        session = opened(self, beside)
        sessions.append(session)
        return session

    monkeypatch.setattr(type(small), "open", noting)
    passes = {}
    for gate in ("random:1", "random:0.3", "random:0"):
        sessions.clear()
        [answer] = Decoder(model, {"g": guide}).answers([(PROMPTS[0], replace(params, gates={"g": gate}))])
        assert answer.acted is not None
        opened_at = round(12 * answer.acted["g"])
        trunks = {id(session.trunk): session.trunk for session in sessions if session.trunk.network is small}
        passes[gate] = (opened_at, sum(trunk.num_passes for trunk in trunks.values()))
    assert passes["random:1"][0] == 12
    assert passes["random:0"][0] == 0
    saved = passes["random:1"][1] - passes["random:0.3"][1]
    assert saved == 12 - passes["random:0.3"][0] > 0
    assert passes["random:1"][1] - passes["random:0"][1] == 12


def test_an_agent_is_not_asked_where_its_gate_is_closed() -> None:
    model = tiny_model("llama")
    agent = Agent(AgentNetwork(model.hidden_size))
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, trace=True, seed=0, weights={"a": 0.5})
    [answer] = Decoder(model, {"a": agent}).answers([(PROMPTS[0], replace(params, gates={"a": "random:0.4"}))])
    asked = [step.choice is not None for step in answer.trace or ()]
    assert 0 < sum(asked) < 30
    assert answer.acted == {"a": sum(asked) / 30}
    [off] = Decoder(model, {"a": agent}).answers([(PROMPTS[0], replace(params, gates={"a": "random:0"}))])
    assert not any(step.choice for step in off.trace or ())


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ({"other": "entropy:1"}, r"^gates: Unknown guide 'other'"),
        ({"g": "entropy"}, "^gates: 'entropy' is no gate; give RULE:NUMBER"),
        ({"g": "entropie:1"}, "^gates: .*entropie"),
        ({"g": "entropy:-1"}, "gate entropy takes a finite number of at least 0, not '-1'"),
        ({"g": "margin:0"}, "margin takes a finite number above 0 and at most 1"),
        ({"g": "random:1.2"}, "random takes"),
        ({"g": "bet:nan"}, "bet takes"),
        ({"g": "bet:0.1", "h": "bet:0.1"}, "a bet each"),
        ({"a": "bet:0.1"}, "selects among candidates"),
        (3, "gates is 3; give a mapping"),
        ({"g": 0.5}, "gates is"),
    ],
)
def test_gates_that_mean_nothing_are_refused(gates: Any, words: str) -> None:
    model = tiny_model("llama")
    lora = random_lora(model, 3)
    guides = {"g": AdapterARM(lora), "h": AdapterARM(lora), "a": Agent(AgentNetwork(model.hidden_size))}
    with pytest.raises(OptionError, match=words):
        list(Decoder(model, guides).generate([PROMPTS[0]], gates=gates, max_new_tokens=2))


def test_vllm_refuses_by_name() -> None:
    with pytest.raises(OptionError, match="gates"):
        check_params(SamplingParams(gates={"g": "entropy:1"}))


def test_the_method_is_the_guide_behind_its_gate(tmp_path: Any) -> None:
    model = tiny_model("llama")
    guide = AdapterARM(random_lora(model, 3), form=SHIFT)
    save_guide(guide, tmp_path / "g")
    policy = build_policy(model, "gated", {"path": str(tmp_path / "g"), "gate": "random:0.5"})
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, trace=True)
    answer = next(policy.answer([PROMPTS[0]], 2.0, params, [5]))
    asked = replace(params, seed=5, weights={"guide": 2.0}, gates={"guide": "random:0.5"})
    [plain] = Decoder(model, {"guide": guide}).answers([(PROMPTS[0], asked)])
    assert answer.token_ids == plain.token_ids
    assert answer.acted == plain.acted
    assert policy.kl_kind == "exact"
    assert check_method("gated", {"path": "x", "gate": "entropy:1"}, [1.0]) == []
    [problem] = check_method("gated", {"path": "x", "gate": "entropy"}, [1.0])
    assert "gate" in problem


def gated_cell(name: str, gate: str, acted: float, strength: float = 1.0) -> Cell:
    spec = MethodSpec(name, "gated", (strength,), options={"path": "g", "gate": gate})
    rows = tuple(
        Row(Key(name, strength, 0, "test", index), "p", "t", (1, 2), "eos", {}, 1.0, "exact", -3.0, {"guide": acted})
        for index in range(3)
    )
    return Cell(spec, strength, rows)


def test_a_report_says_the_rate_of_a_gate_and_asks_for_the_gate_of_chance_that_is_its_control() -> None:
    unsure, chance = gated_cell("unsure", "entropy:2", 0.31), gated_cell("chance", "random:0.3", 0.3)
    assert notes._gates([unsure, chance]) == {
        "Gates": "unsure at strength 1 acts at 31.0% of the tokens; chance at strength 1 acts at 30.0% of the tokens"
    }
    assert notes._without_control([unsure, chance]) == []
    [said] = notes._without_control([unsure])
    assert "no gate of chance of that rate stands beside it" in said
    assert "random:0.31" in said
    for other in (gated_cell("chance", "random:0.2", 0.2), gated_cell("chance", "random:0.3", 0.3, strength=2.0)):
        assert len(notes._without_control([unsure, other])) == 1
    assert notes._without_control([gated_cell("bet", "bet:0.2", 1.0)]) == []
    assert notes._gates([gated_cell("bet", "bet:0.2", 1.0)]) == {}  # it is asked at every token
    assert notes._without_control([gated_cell("never", "entropy:20", 0.0)]) == [
        "The gate of never at strength 1 never opened: its answers are the base's."
    ]
