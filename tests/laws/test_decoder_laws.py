"""The laws that only the loop can keep: weight 0 is the base, and a seeded request is its own master."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import PROMPTS, tiny_model
from trimtab.answers import Answer
from trimtab.core import Candidates, Guide, LanguageModel, ModelSession, SamplingParams, Session
from trimtab.decoding import batch, lanes
from trimtab.decoding.decoder import Decoder
from trimtab.decoding.places import Place, Places
from trimtab.errors import OptionError
from trimtab.guides.arm import ARM, AdapterARM, ARMSession
from trimtab.mixing.forms import SHIFT
from trimtab.models.forward.trunk import Trunk
from trimtab.models.tabular import TabularModel
from trimtab.testing import LawViolation, laws

COMPANY = "a seeded request gives the same tokens alone and in any company, with drafts and without"


def tabular_world() -> tuple[LanguageModel, dict[str, Guide]]:
    base = TabularModel.random(61, seed=0)
    return base, {"one": ARM(TabularModel.random(61, seed=1)), "two": ARM(base, prompt=[3, 1], form=SHIFT)}


def llama_world() -> tuple[LanguageModel, dict[str, Guide]]:
    """One guide rides in the base's forward pass, the other is the base itself under another prompt."""
    base = tiny_model("llama")
    return base, {"one": AdapterARM(random_lora(base, seed=5)), "two": ARM(base, prompt=[3, 1], form=SHIFT)}


def mistral_world() -> tuple[LanguageModel, dict[str, Guide]]:
    """Both guides are models of their own; the second is measured from a third."""
    tuned, reference = tiny_model("mistral"), tiny_model("gemma2")
    two = ARM(tuned, prompt=[3, 1], form=SHIFT, reference=reference)
    return tiny_model("mistral"), {"one": ARM(tiny_model("gemma2")), "two": two}


WORLDS = {"tabular": tabular_world, "llama": llama_world, "mistral": mistral_world}


def ends_and_penalties(dice: random.Random, size: int) -> dict[str, Any]:
    """Some of what a request may ask for, of answers of at least one token."""
    asked: dict[str, Any] = {}
    if dice.random() < 0.3:
        asked |= {"presence_penalty": dice.choice([0.0, 0.7, -1.5]), "frequency_penalty": dice.choice([0.5, -0.3, 2.0])}
    if dice.random() < 0.3:
        asked["logit_bias"] = {dice.randrange(size): dice.choice([-100, -2.5, 3.0, 9.0]) for _ in range(4)}
    if dice.random() < 0.3:
        asked["min_tokens"] = 1
    if dice.random() < 0.3:
        asked["stop_token_ids"] = tuple(dice.randrange(size) for _ in range(2))
    return asked


def random_params(dice: random.Random) -> SamplingParams:
    """Anything a request may ask for."""
    return SamplingParams(
        weights={"one": dice.choice([0.0, 0.0, 1.0, 0.5, 2.0]), "two": dice.choice([0.0, 0.0, 1.0, -0.5, 2.0])},
        max_new_tokens=dice.randint(1, 10),
        temperature=dice.choice([0.0, 0.7, 1.0, 1.5]),
        top_k=dice.choice([0, 0, 5]),
        top_p=dice.choice([1.0, 0.9]),
        min_p=dice.choice([0.0, 0.05]),
        plausibility=dice.choice([0.0, 0.0, 0.1]),
        repetition_penalty=dice.choice([1.0, 1.3]),
        **ends_and_penalties(dice, 61),
        ignore_eos=dice.random() < 0.5,
        seed=dice.randrange(1000),
    )


def drafted(decoder: Decoder, prompt: Sequence[int], params: SamplingParams, dice: random.Random) -> SamplingParams:
    """The same request with drafts, of a kind that it can have."""
    kinds = ["none", "lookup", "small", "guide", *decoder.guides]
    asked = replace(params, draft=dice.choice(kinds), draft_tokens=dice.choice([None, 1, 3, 6]))
    try:
        Decoder(decoder.model, decoder.guides, drafters=decoder.drafters).add(prompt, asked)
    except OptionError:
        return params
    return asked


def check_company(model: LanguageModel, guides: dict[str, Guide], seed: int, chunk: int | None = None) -> int:
    """Decode requests alone, then all together: joining late, more than there are rows, some cancelled on the way.

    Together, a step feeds at most `chunk` tokens of prompts, and requests have drafts of any kind.

    Returns how many tokens were compared.
    """
    dice = random.Random(seed)
    wanted = [(dice.choice(PROMPTS), random_params(dice)) for _ in range(12)]
    alone = []
    for prompt, params in wanted:
        decoder = Decoder(model, guides)
        request_id = decoder.add(prompt, params)
        alone.append(_run(decoder, [request_id])[request_id])
    small = TabularModel.random(61, seed=0, order=1)
    together = Decoder(model, guides, max_rows=5, prefill_chunk=chunk, drafters={"small": small})
    waiting, ids, tokens = list(wanted), [], {}
    while waiting or together.num_running or together.num_waiting:
        for _ in range(dice.randint(0, 3)):
            if waiting:
                prompt, params = waiting.pop(0)
                ids.append(together.add(prompt, drafted(together, prompt, params, dice)))
                stranger = together.add(dice.choice(PROMPTS), random_params(dice))
                if dice.random() < 0.5:
                    together.cancel(stranger)
        for step in together.step():
            tokens.setdefault(step.request_id, []).append(step.token_id)
    for number, (request_id, own) in enumerate(zip(ids, alone, strict=True)):
        if tokens[request_id] != own:
            raise LawViolation(COMPANY, f"request {number} gave {own} alone and {tokens[request_id]} in company")
    return sum(map(len, alone))


def _run(decoder: Decoder, request_ids: list[int]) -> dict[int, list[int | None]]:
    tokens: dict[int, list[int | None]] = {request_id: [] for request_id in request_ids}
    while decoder.num_running or decoder.num_waiting:
        for step in decoder.step():
            tokens[step.request_id].append(step.token_id)
    return tokens


@pytest.mark.parametrize(("world", "seed"), [*(("tabular", seed) for seed in range(4)), ("llama", 0), ("mistral", 1)])
def test_a_seeded_request_is_the_same_alone_and_in_company(world: str, seed: int) -> None:
    assert check_company(*WORLDS[world](), seed) > 30


@pytest.mark.parametrize(("world", "chunk"), [("tabular", 1), ("tabular", 3), ("llama", 2), ("mistral", 3)])
def test_prompts_fed_in_pieces_change_no_answer(world: str, chunk: int) -> None:
    assert check_company(*WORLDS[world](), 7, chunk) > 30


def test_a_step_feeds_no_more_of_the_prompts_than_it_may() -> None:
    decoder = Decoder(tiny_model("llama"), prefill_chunk=4)
    decoder.add([1, 2, 3], SamplingParams(max_new_tokens=20, ignore_eos=True))
    (trunk,) = decoder.capacity.caches
    assert isinstance(trunk, Trunk)
    assert len(decoder.step()) == 1
    decoder.add(list(range(1, 30)), SamplingParams(max_new_tokens=3))
    for number in range(8):
        before = trunk.num_fed
        steps = decoder.step()
        assert trunk.num_fed - before == 1 + min(
            4, 29 - 4 * number
        )  # the first request's new token, and a piece of the prompt
        assert len(steps) == (2 if number == 7 else 1)


def shared_stream(names: Sequence[tuple[int, int]], device: object) -> Tensor:
    return torch.randint(1 << 62, (len(names),))


sound_part = lanes.Lane.part


def one_row_late(self: lanes.Lane, *args: Any) -> tuple[Tensor, Tensor] | None:
    part = sound_part(self, *args)
    return part if part is None else (part[0].roll(1, 0), part[1])


def cut_not_reordered(self: lanes.Lane, running: set[int]) -> None:
    self._requests = [request for request in self._requests if request.request_id in running]
    self._session.keep(torch.arange(len(self._requests)))


def any_draft_is_right(self: Places, row: int, tokens: object, failures: object) -> list[int]:
    return list(self.of_request(self[self.first(row)].request.request_id))


def position_of_the_step(self: Place) -> int:
    return len(self.request.token_ids)


def everything_stays(self: lanes.Rows[Session], counts: Mapping[int, int]) -> None:
    self._drafted = {}


BREAKAGES: dict[str, tuple[object, str, Callable[..., object]]] = {
    "any draft is taken": (Places, "run", any_draft_is_right),
    "one random number for all drafts": (Place, "position", property(position_of_the_step)),
    "drafts are never taken back": (lanes.Rows, "settle", everything_stays),
    "one random stream for all": (batch, "step_keys", shared_stream),
    "a neighbour's guidance": (lanes.Lane, "part", one_row_late),
    "a guide's rows cut and not reordered": (lanes.Lane, "keep", cut_not_reordered),
}


@pytest.mark.parametrize("how", BREAKAGES)
def test_the_checker_rejects_a_broken_loop(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BREAKAGES[how])
    with pytest.raises(LawViolation) as caught:
        check_company(*tabular_world(), seed=0)
    assert caught.value.law == COMPANY


class Hostile(ARM):
    """A guide that vetoes everything but one token, and is NaN there."""

    def open(self, beside: ModelSession | None = None) -> ARMSession:
        return HostileSession(self.model.open(beside))


class HostileSession(ARMSession):
    def score(self, candidates: Candidates) -> Tensor:
        return torch.full_like(candidates.logprobs, -torch.inf).masked_fill(candidates.token_ids == 1, torch.nan)


STEERED = {"one": 1.0, "two": -0.5, "hostile": 0.0}
OFF = {"one": 0.0, "two": 0.0, "hostile": 0.0}


def check_weight_zero(decoder: Decoder) -> None:
    """Rows at weight 0, beside rows that are steered: every mixed number is the base's to the last bit."""
    for row, answer in enumerate(_traced(decoder, [STEERED, OFF, STEERED, OFF])):
        assert answer.trace is not None
        for step, note in enumerate(answer.trace):
            for rival in note.alternatives if row in (1, 3) else ():
                if rival.guide_scores or rival.mixed_logprob != rival.base_logprob:
                    numbers = f"{rival.mixed_logprob!r} instead of {rival.base_logprob!r}"
                    raise LawViolation(laws.WEIGHT_ZERO, f"row {row}, step {step}, token {rival.token_id}: {numbers}")


def _traced(decoder: Decoder, weights: list[dict[str, float]] | None) -> list[Answer]:
    answers = decoder.generate(
        PROMPTS, weights=weights, max_new_tokens=6, ignore_eos=True, seed=3, trace=True, num_alternatives=61
    )
    return list(answers)


@pytest.mark.parametrize("world", WORLDS)
def test_weight_zero_is_the_base_bit_for_bit(world: str) -> None:
    model, guides = WORLDS[world]()
    decoder = Decoder(model, {**guides, "hostile": Hostile(model)})
    check_weight_zero(decoder)
    for ours, theirs in zip(_traced(decoder, [OFF] * 4), _traced(Decoder(model), None), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.trace == theirs.trace


def leaking(self: lanes.Lane, *args: Any) -> tuple[Tensor, Tensor] | None:
    part = sound_part(self, *args)
    return part if part is None else (part[0].roll(1, 0), part[1].roll(1, 0))


def test_the_checker_rejects_guidance_that_leaks_to_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guides = tabular_world()
    monkeypatch.setattr(lanes.Lane, "part", leaking)
    with pytest.raises(LawViolation) as caught:
        check_weight_zero(Decoder(model, {**guides, "hostile": Hostile(model)}))
    assert caught.value.law == laws.WEIGHT_ZERO
