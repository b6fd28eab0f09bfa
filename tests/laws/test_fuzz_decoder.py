"""Random requests in random company, errors striking among them, against each alone: the tokens must be the same.

A few hundred here, thousands in the slow tests. A request that differs is told with its options, so that it can be
asked again.
"""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.laws.test_decoder_laws import ends_and_penalties
from tests.tiny import byte_llama, byte_tokenizer, tiny_module, write_lora
from trimtab.core import Candidates, Guide, LanguageModel, ModelSession, SamplingParams, Selection, TokenIds
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError, TrimtabError
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import ARM, ARMSession
from trimtab.mixing.rules import ACCEPTING_RULES
from trimtab.models.hf import HFModel
from trimtab.storage.loading import load_guide

Asked = tuple[list[int], SamplingParams]
Found = list[int | str | None]


class Strikes:
    """Errors at random calls of a guide, rare enough that a search for the guilty does not meet two."""

    def __init__(self, rng: random.Random, *, gap: int) -> None:
        self._rng, self._gap = rng, gap
        self._left = rng.randint(1, gap)
        self.num = 0

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._left = self._gap + self._rng.randint(1, self._gap)
            self.num += 1
            raise RuntimeError("struck")


class StruckSession(ARMSession):
    """A guide's session that is struck by errors, half-way through a call."""

    def __init__(self, session: ModelSession, strike: Callable[[], None]) -> None:
        super().__init__(session)
        self._strike = strike

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        super().admit(prompts)
        self._strike()

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        super().advance(rows[:1], token_ids[:1])
        self._strike()
        super().advance(rows[1:], token_ids[1:])

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self._strike()

    def score(self, candidates: Candidates) -> Tensor:
        scores = super().score(candidates)
        self._strike()
        return scores


def nothing() -> None:
    """No strike."""


def deadly() -> None:
    """Every request in which this guide runs is lost."""
    raise RuntimeError("deadly")


@dataclass(frozen=True)
class Struck(ARM):
    """A guide that is struck by errors."""

    strike: Callable[[], None] = nothing

    def open(self, beside: ModelSession | None = None) -> StruckSession:
        return StruckSession(self.model.open(beside), self.strike)


@dataclass(frozen=True)
class World:
    """A model, its guides, and the requests that are drawn for them."""

    model: LanguageModel
    guides: dict[str, Guide]
    draw: Callable[[random.Random, Sequence[int]], Asked]
    small: LanguageModel
    """It drafts for those that ask it to."""


def prompt_of(rng: random.Random, shared: Sequence[int], size: int, longest: int) -> list[int]:
    some = [rng.randrange(3, size) for _ in range(rng.randint(1, 12))]
    start = list(shared[: rng.choice([0, 1, 3, 9, 17, len(shared)])]) if rng.random() < 0.6 else []
    prompt = start + some
    return (prompt * longest)[: longest - rng.randint(0, 3)] if rng.random() < 0.04 else prompt


def any_params(rng: random.Random, size: int) -> SamplingParams:
    traced, most = rng.random() < 0.25, rng.choice([1, 2, 3, 7])
    return SamplingParams(
        **{**ends_and_penalties(rng, size), "min_tokens": rng.choice([0, 0, most, rng.randint(0, most)])},
        weights={name: rng.choice([0.0, 0.0, 1.0, 0.5, -1.0, 2.5]) for name in ("lora", "whole", "struck")},
        max_new_tokens=most,
        temperature=rng.choice([None, 0.0, 1.0, 0.7, 1e-6, 3.0]),
        top_k=rng.choice([None, 0, 1, 5, 1000]),
        top_p=rng.choice([None, 1.0, 0.9, 0.3, 1e-9]),
        min_p=rng.choice([0.0, 0.0, 0.1, 1.0]),
        plausibility=rng.choice([0.0, 0.0, 0.2, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.5]),
        ignore_eos=rng.random() < 0.3,
        stop=tuple(rng.sample(["a", "ab", "é", "\n", "x", "0", "zz"], 2)) if rng.random() < 0.2 else (),
        forced=tuple(rng.randrange(3, size) for _ in range(rng.randint(1, 3))) if rng.random() < 0.1 else (),
        seed=rng.choice([0, 1, rng.randrange(1 << 63)]),
        trace=traced,
        num_alternatives=rng.choice([0, 3, 500]) if traced else 0,
    )


@functools.cache
def plain_world() -> World:
    tokenizer = byte_tokenizer()
    module = byte_llama(tokenizer, max_length=64)
    model = HFModel(module, tokenizer)
    other = HFModel(byte_llama(tokenizer, max_length=56, seed=7), tokenizer)

    def draw(rng: random.Random, shared: Sequence[int]) -> Asked:
        params = any_params(rng, 259)
        deadly_weight = 1.0 if rng.random() < 0.04 else 0.0
        prompt = prompt_of(rng, shared, 259, 55)
        masks = {name: rng.choice([0.0, 0.2, 1.0]) for name in ("lora", "whole") if rng.random() < 0.2}
        return prompt, replace(params, weights={**params.weights, "deadly": deadly_weight}, guide_plausibility=masks)

    with tempfile.TemporaryDirectory() as directory:
        lora = load_guide(write_lora(Path(directory), module, seed=1))
    guides: dict[str, Guide] = {
        "lora": lora,
        "whole": ARM(other),
        "struck": Struck(model, prompt=[5, 9]),
        "deadly": Struck(model, strike=deadly),
    }
    return World(model, guides, draw, other)


def agent_world(family: str, rule: str) -> World:
    model = HFModel(tiny_module(family))
    torch.manual_seed(3)
    network = AgentNetwork(model.hidden_size, 16).eval().requires_grad_(False)
    torch.nn.init.normal_(network.output_linear.weight, std=3.0)
    agent = Agent(network, selection=Selection(ACCEPTING_RULES[rule]()))

    def draw(rng: random.Random, shared: Sequence[int]) -> Asked:
        how = SamplingParams(
            weights={"agent": rng.choice([0.0, 0.1, 0.5, 0.9]), "struck": rng.choice([0.0, 0.0, 1.0])},
            max_new_tokens=rng.choice([1, 3, 6]),
            temperature=rng.choice([None, 0.0, 0.7]),
            top_k=rng.choice([None, 1, 3, 9]),
            top_p=rng.choice([None, 0.5]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            **ends_and_penalties(rng, 61),
            seed=rng.randrange(999),
            ignore_eos=True,
            trace=rng.random() < 0.3,
        )
        gate = rng.choice(["", "", "significance:1.2", "significance:0.7", "random:0.5", "entropy:3.9"])
        gates = {"agent": gate} if gate else {}
        return prompt_of(rng, shared, 61, 60), replace(how, gates=gates)

    small = HFModel(tiny_module(family, seed=8))
    return World(model, {"agent": agent, "struck": Struck(model, prompt=[5, 9])}, draw, small)


def outcome(decoder: Decoder, found: dict[int, Found]) -> None:
    """One step, into what each request got."""
    for step in decoder.step():
        if step.token_id is not None:
            found[step.request_id].append(step.token_id)
        if step.finish_reason is not None:
            found[step.request_id].append(type(step.error).__name__ if step.error else step.finish_reason)


def alone(world: World, asked: Asked) -> Found:
    decoder = Decoder(world.model, world.guides)
    found: dict[int, Found] = {decoder.add(*asked): []}
    for _ in range(40):
        if decoder.num_running or decoder.num_waiting:
            outcome(decoder, found)
    return found[0]


def add_drafted(decoder: Decoder, asked: Asked, rng: random.Random) -> int:
    """The request with drafts of some kind, where it can have them."""
    prompt, params = asked
    kinds = ["none", "lookup", "guide", *decoder.guides, *decoder.drafters]
    drafts = replace(params, draft=rng.choice(kinds), draft_tokens=rng.choice([None, 1, 2, 5]))
    try:
        return decoder.add(prompt, drafts)
    except OptionError:
        return decoder.add(prompt, params)


def together(world: World, rng: random.Random, waiting: list[Asked], strikes: Strikes) -> list[tuple[Asked, Found]]:
    """The same requests, joining when they like, some cancelled, with errors that strike where a guide runs."""
    guides = {**world.guides, "struck": replace(world.guides["struck"], strike=strikes)}  # type: ignore[type-var]
    decoder = Decoder(
        world.model,
        guides,
        max_rows=rng.choice([1, 3, 8]),
        prefill_chunk=rng.choice([None, None, 1, 4, 16]),
        drafters={"small": world.small},
    )
    asked: dict[int, Asked] = {}
    found: dict[int, Found] = {}
    for _ in range(5000):
        if not (waiting or decoder.num_running or decoder.num_waiting):
            break
        for _ in range(rng.choice([0, 1, 1, 3])):
            if waiting:
                one = waiting.pop()
                number = add_drafted(decoder, one, rng)
                asked[number], found[number] = one, []
        outcome(decoder, found)
        if asked and rng.random() < 0.03:
            number = rng.choice(list(asked))
            decoder.cancel(number)
            if not any(isinstance(item, str) for item in found[number]):
                del asked[number]
    else:
        raise AssertionError("the loop does not end")
    assert decoder.num_rows == 0
    return [(one, found[number]) for number, one in asked.items()]


def fuzz(world: World, seed: int, num: int, *, gap: int = 40) -> None:
    """Errors strike at least `gap` calls of a guide apart."""
    rng = random.Random(seed)
    strikes = Strikes(rng, gap=gap)
    shared = [rng.randrange(3, 61) for _ in range(25)]
    num_done = 0
    while num_done < num:
        waiting: list[Asked] = []
        for _ in range(rng.randint(3, 14)):
            one = world.draw(rng, shared)
            try:
                Decoder(world.model, world.guides).add(*one)
            except TrimtabError:
                continue
            waiting += [replace_seed(one, number) for number in range(rng.choice([1, 1, 1, 3]))]
        for one, tokens in together(world, rng, waiting, strikes):
            num_done += 1
            expected = alone(world, one)
            assert tokens == expected, f"seed {seed}: {one}\n   alone   {expected}\n   company {tokens}"
    assert strikes.num > num / 50


def replace_seed(one: Asked, number: int) -> Asked:
    """The nth answer of a request."""
    assert one[1].seed is not None
    return one[0], replace(one[1], seed=(one[1].seed + number) % (1 << 63))


RULES = {"llama": "first", "gpt2": "random", "gemma3": "most"}


def test_two_hundred_requests_in_company() -> None:
    fuzz(plain_world(), 1, 200)


def test_two_hundred_requests_with_agents_in_company() -> None:
    for seed, (family, rule) in enumerate(RULES.items()):
        fuzz(agent_world(family, rule), seed, 67)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 16))
def test_thousands_of_requests_in_company(seed: int) -> None:
    fuzz(plain_world(), seed, 500, gap=60)


@pytest.mark.slow
@pytest.mark.parametrize("family", RULES)
def test_thousands_of_requests_with_agents_in_company(family: str) -> None:
    fuzz(agent_world(family, RULES[family]), 20, 1000)
