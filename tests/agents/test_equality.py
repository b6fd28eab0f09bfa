"""Batched, cached, shared-prefix evaluation says what the plain sequential reference says, token for token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.agents.sequential import Sequential, make_accept
from tests.tiny import tiny_module
from trimtab.core import SamplingParams, Selection
from trimtab.decoding.decoder import Decoder
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.mixing.rules import FirstAccepted, MostAccepted, RandomAccepted
from trimtab.models.forward.trunk import Trunk
from trimtab.models.hf import HFModel

RULES: dict[str, Any] = {
    "first": FirstAccepted(),
    "last": FirstAccepted("last"),
    "random": RandomAccepted(),
    "most": MostAccepted(),
}
PROMPTS = [[5, 9, 11], [7], [12, 3, 4, 8, 10, 20, 31], [2, 40], [50, 9, 9, 9, 13]]
LOOKS = [(8, 64), (1, 1), (2, 5, 200), ()]


def world(family: str, share: float = 0.3, seed: int = 0) -> tuple[HFModel, AgentNetwork]:
    """A tiny model and an agent that accepts so many of its candidates."""
    model = HFModel(tiny_module(family, seed=seed))
    torch.manual_seed(seed + 1)
    network = AgentNetwork(model.hidden_size, 64).eval().requires_grad_(False)
    torch.nn.init.normal_(network.output_linear.weight, std=2.0)
    session = model.open()
    session.admit(PROMPTS)
    states = session.peek(torch.arange(40).expand(len(PROMPTS), -1))
    make_accept(network, states.flatten(0, 1), share)
    return model, network


def ours(
    model: HFModel, agent: Agent, *, num_tokens: int = 12, ignore_eos: bool = False, **params: Any
) -> list[list[int]]:
    decoder = Decoder(model, {"agent": agent}, max_rows=4)  # fewer rows than prompts: one joins late
    answers = decoder.generate(PROMPTS, max_new_tokens=num_tokens, seed=3, ignore_eos=ignore_eos, **params)
    return [list(answer.token_ids) for answer in answers]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma3"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_equals_the_reference(family: str, rule: str) -> None:
    model, network = world(family)
    crops = family not in ("mistral", "gemma3")
    plain = Sequential(model.module, network, model.eos_ids, rule, crops=crops)
    expected = [plain.answer(prompt, 12, seed=3 + row) for row, prompt in enumerate(PROMPTS)]
    agent = Agent(network, selection=Selection(RULES[rule]))
    assert ours(model, agent) == expected
    assert len({tuple(answer) for answer in expected}) > 1


@pytest.mark.parametrize("looks", LOOKS)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_how_candidates_are_cut_into_looks_changes_no_token(looks: tuple[int, ...], share: float) -> None:
    model, network = world("llama", share)
    plain = Sequential(model.module, network, model.eos_ids)
    expected = [plain.answer(prompt, 10, seed=3 + row, ignore_eos=True) for row, prompt in enumerate(PROMPTS)]
    assert ours(model, Agent(network).with_looks(looks), num_tokens=10, ignore_eos=True) == expected


@pytest.mark.parametrize("threshold", [0.2, 0.8])
@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (40, 0.5), (3, 0.9), (1, 1.0)])
def test_thresholds_and_filters_equal_the_reference(threshold: float, top_k: int, top_p: float) -> None:
    model, network = world("llama")
    plain = Sequential(model.module, network, model.eos_ids, "first", threshold, top_k, top_p)
    expected = [plain.answer(prompt, 10, seed=3 + row) for row, prompt in enumerate(PROMPTS)]
    assert (
        ours(model, Agent(network), num_tokens=10, weights={"agent": threshold}, top_k=top_k, top_p=top_p) == expected
    )


def test_an_end_of_sequence_candidate_is_one_like_any_other() -> None:
    """Answers end where the agent accepts the token, and go on where it accepts another before."""
    ended = {True: 0, False: 0}
    for seed in range(4):
        model, network = world("llama", 0.5, seed)
        model.eos_ids = frozenset({1, 9, 14, 22, 30, 41})
        plain = Sequential(model.module, network, model.eos_ids)
        expected = [plain.answer(prompt, 6, seed=3 + row) for row, prompt in enumerate(PROMPTS)]
        assert ours(model, Agent(network), num_tokens=6) == expected
        for answer in expected:
            ended[answer[-1] in model.eos_ids] += 1
    assert ended[True] > 3
    assert ended[False] > 3


def test_requests_with_and_without_the_agent_share_a_batch() -> None:
    model, network = world("llama")
    weights = [{"agent": 0.5}, {"agent": 0.0}, {"agent": 0.8}, {"agent": 0.0}, {"agent": 0.5}]
    plain = [
        Sequential(model.module, network, model.eos_ids, threshold=one["agent"]).answer(prompt, 10, seed=3 + row)
        for row, (one, prompt) in enumerate(zip(weights, PROMPTS, strict=True))
    ]
    base = [list(answer.token_ids) for answer in Decoder(model).generate(PROMPTS, max_new_tokens=10, seed=3)]
    found = ours(model, Agent(network), num_tokens=10, weights=weights)
    for row, one in enumerate(weights):
        assert found[row] == (plain[row] if one["agent"] else base[row])


def test_a_request_that_leaves_disturbs_nobody() -> None:
    model, network = world("llama")
    plain = Sequential(model.module, network, model.eos_ids)
    decoder = Decoder(model, {"agent": Agent(network)})
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, seed=0)
    wanted = {decoder.add(prompt, params): prompt for prompt in PROMPTS}
    found: dict[int, list[int]] = {request: [] for request in wanted}
    while decoder.num_running or decoder.num_waiting:
        if len(found[1]) == 4:
            decoder.cancel(1)
        for step in decoder.step():
            found[step.request_id].append(step.token_id or 0)
    for request, prompt in wanted.items():
        expected = plain.answer(prompt, 12, ignore_eos=True)
        assert found[request] == (expected[:4] if request == 1 else expected)


def test_an_accepted_candidate_is_not_fed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all is accepted at the first look, a token costs one forward pass, as without an agent."""
    model, network = world("llama", 1.0)
    widths: list[tuple[int, ...]] = []
    forward = model.forward

    def counted(token_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        widths.append(tuple(token_ids.shape))
        return forward(token_ids, *rest)

    monkeypatch.setattr(model, "forward", counted)
    agent = Agent(network).with_looks((1,))
    list(Decoder(model, {"agent": agent}).generate([PROMPTS[0]], max_new_tokens=8, ignore_eos=True))
    assert widths == [(1, 3)] + [(1, 1)] * 8


def test_rows_that_decide_early_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, network = world("llama", 0.3)
    columns: list[int] = []
    forward = model.forward

    def counted(token_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        columns.append(token_ids.numel())
        return forward(token_ids, *rest)

    agent = Agent(network).with_looks((1,))
    expected = ours(model, agent, ignore_eos=True)
    monkeypatch.setattr(model, "forward", counted)
    assert ours(model, agent, ignore_eos=True) == expected
    one_by_one = sum(columns)
    columns.clear()
    assert ours(model, agent.with_looks(()), ignore_eos=True) == expected
    assert one_by_one < 0.5 * sum(columns)


def test_a_row_that_is_decided_does_not_wait_for_those_that_still_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes are as many as the row takes that needs most looks, and not as many as the slowest row of each token."""
    model, network = world("llama", 0.15)
    agent = Agent(network).with_looks((1,))
    alone = [_looks_of(model, agent, [prompt], monkeypatch) for prompt in PROMPTS]
    together = _looks_of(model, agent, PROMPTS, monkeypatch)
    assert together == max(alone)
    assert len(set(alone)) > 1


def _looks_of(model: HFModel, agent: Agent, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many passes look at candidates while these are answered."""
    looks: list[int] = []
    peek = Trunk.peek
    with monkeypatch.context() as patched:
        patched.setattr(Trunk, "peek", lambda self, *args: looks.append(1) or peek(self, *args))
        list(Decoder(model, {"agent": agent}).generate(prompts, max_new_tokens=12, ignore_eos=True, seed=3))
    return len(looks)


def test_an_agent_after_an_arm_chooses_among_the_tilted_candidates() -> None:
    from trimtab.guides.arm import ARM

    model, network = world("llama")
    other = HFModel(tiny_module("llama", seed=9))
    decoder = Decoder(model, {"arm": ARM(other), "agent": Agent(network)})
    weights = {"arm": 1.5, "agent": 0.5}
    answers = list(decoder.generate(PROMPTS, weights=weights, max_new_tokens=8, ignore_eos=True, seed=0))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert list(answer.token_ids) == _tilted_then_chosen(model, other, network, prompt, 8)
    untilted = decoder.generate(PROMPTS, weights={"arm": 0.0, "agent": 0.5}, max_new_tokens=8, ignore_eos=True, seed=0)
    assert [answer.token_ids for answer in untilted] != [answer.token_ids for answer in answers]


def _tilted_then_chosen(
    model: HFModel, arm: HFModel, network: AgentNetwork, prompt: list[int], num_tokens: int
) -> list[int]:
    """The same from whole sequences, without any cache."""
    ids = list(prompt)
    for _ in range(num_tokens):
        now = torch.tensor([ids])
        with torch.inference_mode():
            tilted = sum(
                weight * torch.log_softmax(one.module(now).logits[0, -1], -1)
                for one, weight in ((model, 1.0), (arm, 1.5))
            )
            policy = torch.log_softmax(tilted, -1)
            order = policy.sort(descending=True).indices[:40].tolist()
            masses = torch.softmax(policy[order], -1).cumsum(0)
            count = int((masses < 0.95).sum()) + 1
            chosen = order[0]
            for token in order[:count] if count > 1 else []:
                state = model.module(torch.tensor([[*ids, token]]), output_hidden_states=True).hidden_states[-1][0, -1]
                logits = network(state)
                if logits[1] > logits[0]:
                    chosen = token
                    break
        ids.append(chosen)
    return ids[len(prompt) :]


def test_an_agent_of_the_released_layout_in_half_precision_weights_equals_its_reference() -> None:
    """What a checkpoint of the authors' becomes: names as released, any float dtype, float32 here."""
    model, network = world("llama")
    released = {name: tensor.to(torch.float16) for name, tensor in network.state_dict().items()}
    ours_network = AgentNetwork.of_weights(released, "released")
    plain = Sequential(model.module, ours_network, model.eos_ids)
    expected = [plain.answer(prompt, 12, seed=3 + row) for row, prompt in enumerate(PROMPTS)]
    assert ours(model, replace(Agent(network), network=ours_network)) == expected
