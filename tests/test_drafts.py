"""Drafts: where they come from, how long they are, what is refused; that no answer depends on them is a law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import tiny_model
from tests.tiny import tiny_module
from trimtab import ARM, Answer, Decoder, SamplingParams, Selection, StatelessGuide, TabularModel
from trimtab.core import Candidates, TokenIds
from trimtab.decoding.lengths import Appetite
from trimtab.decoding.lookup import Lookup
from trimtab.errors import OptionError, VocabularyMismatchError
from trimtab.guides.arm import AdapterARM
from trimtab.mixing.rules import FirstAccepted
from trimtab.models.forward.times import PassTimes, guessed
from trimtab.models.forward.trunk import Trunk
from trimtab.models.hf import HFModel

BASE = TabularModel.random(9, seed=0, order=2, scale=2.0)
GUIDES = {"one": ARM(TabularModel.random(9, seed=1, order=1)), "two": ARM(BASE, prompt=[3], form="shift")}
SMALL = {"small": TabularModel.random(9, seed=0, order=1, scale=2.0)}


def answers(draft: str, **how: Any) -> list[Answer]:
    decoder = Decoder(BASE, GUIDES, drafters=SMALL)
    return list(decoder.generate(["ab", "ba", "ccc"], seed=3, draft=draft, **{"ignore_eos": True, **how}))


@pytest.mark.parametrize("draft", ["lookup", "one", "two", "small"])
@pytest.mark.parametrize(
    "how",
    [
        {"max_new_tokens": 40},
        {"max_new_tokens": 40, "temperature": 0, "draft_tokens": 5},
        {"max_new_tokens": 30, "top_k": 3, "repetition_penalty": 1.3, "plausibility": 0.1, "draft_tokens": 3},
        {"max_new_tokens": 30, "stop": ("aa", "cb"), "draft_tokens": 6},
        {"max_new_tokens": 30, "ignore_eos": False, "temperature": 0.7, "draft_tokens": 6},
        {
            "max_new_tokens": 40,
            "presence_penalty": 0.6,
            "frequency_penalty": 0.5,
            "logit_bias": {3: 1.5},
            "draft_tokens": 4,
        },
        {"max_new_tokens": 30, "min_tokens": 12, "stop": ("aa", "cb"), "stop_token_ids": (4,), "ignore_eos": False},
    ],
    ids=["sampled", "greedy", "filters", "stop", "eos", "penalties", "least"],
)
def test_tokens_texts_ends_and_traces_are_the_same(draft: str, how: dict[str, Any]) -> None:
    plain, drafted = (answers(kind, trace=True, num_alternatives=2, **how) for kind in ("none", draft))
    for before, now in zip(plain, drafted, strict=True):
        assert (now.token_ids, now.text, now.finish_reason) == (before.token_ids, before.text, before.finish_reason)
        assert now.trace == before.trace


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2"])
def test_right_guesses_spare_passes_and_steps_still_come_one_a_token(family: str) -> None:
    model = tiny_model(family)
    found = {}
    for draft in ("none", "lookup", "forced"):
        decoder = Decoder(model)
        repeated = tuple([5, 6, 7, 8] * 12)
        how = SamplingParams(max_new_tokens=50, seed=2, ignore_eos=True, forced=repeated, draft=draft, draft_tokens=4)
        request = decoder.add([5, 6, 7, 8, 5, 6, 7, 8], how)
        steps = []
        while decoder.num_running or decoder.num_waiting:
            steps += decoder.step()
        assert {step.request_id for step in steps} == {request}
        assert [step.finish_reason for step in steps] == [None] * 49 + ["length"]
        (trunk,) = decoder.capacity.caches
        assert isinstance(trunk, Trunk)
        found[draft] = [step.token_id for step in steps], trunk.num_passes
    assert found["lookup"][0] == found["forced"][0] == found["none"][0]
    assert found["none"][1] == 50
    assert found["lookup"][1] <= 15
    assert found["forced"][1] <= 15


def test_a_request_is_cancelled_between_its_drafts() -> None:
    decoder = Decoder(BASE)
    stays = decoder.add("ab", SamplingParams(max_new_tokens=20, ignore_eos=True, seed=1, draft="lookup"))
    leaves = decoder.add("ab", SamplingParams(max_new_tokens=20, ignore_eos=True, seed=2, draft="lookup"))
    tokens = [step.token_id for step in decoder.step() if step.request_id == stays]
    decoder.cancel(leaves)
    while decoder.num_running:
        tokens += [step.token_id for step in decoder.step()]
    [alone] = Decoder(BASE).generate("ab", max_new_tokens=20, ignore_eos=True, seed=1)
    assert tuple(tokens) == alone.token_ids


class Hesitant(StatelessGuide):
    """NaN once a row holds so many tokens: the request fails there, and not before."""

    def score(self, rows: Sequence[TokenIds], candidates: Candidates) -> torch.Tensor:
        late = torch.tensor([len(row) >= 12 for row in rows])
        return torch.zeros_like(candidates.logprobs).masked_fill(late[:, None], torch.nan)


def test_an_error_after_a_draft_ends_the_request_where_it_would_without() -> None:
    for draft in ("none", "lookup"):
        decoder = Decoder(BASE, {"hesitant": Hesitant()})
        [answer] = decoder.generate("ab", max_new_tokens=20, ignore_eos=True, seed=1, draft=draft, draft_tokens=6)
        assert answer.finish_reason == "error"
        assert len(answer.token_ids) == 10


class Broken(TabularModel):
    """A small model whose session cannot be read."""

    def next_logprobs(self, prefix: TokenIds) -> torch.Tensor:
        raise RuntimeError("broken")


def test_a_model_that_fails_to_draft_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken(lambda prefix: torch.zeros(9), 9)
    decoder = Decoder(BASE, drafters={"small": broken})
    [answer] = decoder.generate("ab", max_new_tokens=20, ignore_eos=True, seed=1, draft="small", draft_tokens=2)
    [plain] = Decoder(BASE).generate("ab", max_new_tokens=20, ignore_eos=True, seed=1)
    assert answer.token_ids == plain.token_ids
    assert "broken" in caplog.text


def selecting() -> ARM:
    @dataclass(frozen=True)
    class Selecting(ARM):
        selection = Selection(FirstAccepted())  # type: ignore[assignment]

    return Selecting(BASE)


@pytest.mark.parametrize(
    ("guides", "draft", "message"),
    [
        ({}, "guide", "There is no guide that could draft.*give draft one of none, lookup"),
        ({"lora": "lora"}, "guide", "an adapter of the base runs in the base's own passes"),
        (GUIDES, "guide", "Several guides could draft.*one, two"),
        (GUIDES, "anything", "draft 'anything'.*lookup, none, one, two"),
        ({"agent": selecting()}, "lookup", "Guide agent selects the token"),
    ],
)
def test_what_cannot_draft_is_refused_by_name(guides: dict[str, Any], draft: str, message: str) -> None:
    base: Any = BASE
    if "lora" in guides:
        base = tiny_model("llama")
        guides = {"lora": AdapterARM(random_lora(base, seed=5))}
    with pytest.raises(OptionError, match=f"(?s){message}"):
        Decoder(base, guides).add([1, 2], SamplingParams(draft=draft, weights=dict.fromkeys(guides, 0.5)))


def test_a_drafting_models_name_and_vocabulary_are_checked() -> None:
    with pytest.raises(OptionError, match="cannot be called lookup"):
        Decoder(BASE, drafters={"lookup": SMALL["small"]})
    with pytest.raises(OptionError, match="cannot be called one"):
        Decoder(BASE, GUIDES, drafters={"one": SMALL["small"]})
    with pytest.raises(OptionError, match="no guide that steers has its name"):
        Decoder(BASE, GUIDES, drafters={"three": GUIDES["one"]})
    with pytest.raises(VocabularyMismatchError):
        Decoder(BASE, drafters={"small": TabularModel.random(8, seed=0)})


def test_a_model_of_another_kind_drafts_in_a_session_of_its_own() -> None:
    base, small = tiny_model("llama"), HFModel(tiny_module("llama", seed=0, num_hidden_layers=1))
    decoder = Decoder(base, drafters={"small": small})
    how: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True, "seed": 4}
    prompts = [[5, 6, 7], [9, 3]]
    drafted = list(decoder.generate(prompts, draft="small", draft_tokens=3, **how))
    plain = list(Decoder(base).generate(prompts, **how))
    assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in plain]


@pytest.mark.parametrize("draft", ["lora", "guide"])
def test_a_copy_of_a_guide_drafts_in_its_stead(draft: str) -> None:
    base, copied = tiny_model("llama"), HFModel(tiny_module("llama"))
    lora = random_lora(base, seed=5)
    decoder = Decoder(base, {"lora": AdapterARM(lora)}, drafters={"lora": AdapterARM(lora).bind(copied)})
    how: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True, "seed": 4, "temperature": 0.7}
    prompts = [[5, 6, 7], [9, 3]]
    plain = list(decoder.generate(prompts, **how))
    trunk, copy = decoder.capacity.caches[0], decoder._present_batch().drafters.sides[0].session.caches[0]
    assert isinstance(trunk, Trunk)
    before = trunk.num_passes
    drafted = list(decoder.generate(prompts, draft=draft, draft_tokens=3, **how))
    assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in plain]
    assert trunk.num_passes - before < 24  # the copy is as good as the guide, and the base not far from it
    assert copy.num_rows == 0


def test_lookup_continues_as_the_last_like_place_did() -> None:
    assert Lookup().next([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], 3) == [4, 9, 1]
    assert Lookup().next([1, 2, 3, 9, 5, 2, 3], 2) == [9, 5]
    assert Lookup().next([1, 2, 3], 4) == []
    assert Lookup().next([7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]
    growing, lookup = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 1, 4], Lookup()
    for end in range(1, len(growing) + 1):
        assert lookup.next(growing[:end], 3) == Lookup().next(growing[:end], 3)


def test_a_draft_is_as_long_as_what_was_accepted_pays_for() -> None:
    def costly(num: int) -> float:
        return 1 + num

    def cheap(num: int) -> float:
        return 1 + 0.05 * num

    appetite = Appetite()
    assert appetite.length(8, costly) == 0
    first = appetite.length(8, cheap)
    assert 1 <= first < 8
    for _ in range(30):
        appetite.note(4, 4)
    assert appetite.length(8, cheap) == 8
    assert appetite.length(2, cheap) == 2
    for _ in range(30):
        appetite.note(4, 0)
    assert appetite.length(8, cheap) == 0
    waited = next(step for step in range(2000) if appetite.length(8, lambda num: 1 + 0.3 * num))
    assert waited > 20  # another is tried now and then, not at once


def test_passes_tell_what_they_take_and_the_nearest_stands_for_the_others() -> None:
    times = PassTimes()
    assert times.seconds(3) == guessed(3)
    times.note(1, 2.0)
    assert times.seconds(1) == 2.0
    assert times.seconds(4) == pytest.approx(2.0 * guessed(4))
    times.note(4, 3.0)
    assert times.seconds(4) == pytest.approx(3.0)
    assert times.seconds(5) == pytest.approx(3.0 * guessed(5) / guessed(4))
    times.note(1000, 9.0)
    assert times.seconds(100) == pytest.approx(3.0 * guessed(100) / guessed(4))


class Contextual(StatelessGuide):
    """Scores every token by the state before it, which differs from row to row."""

    needs_context = True

    def score(self, rows: Sequence[TokenIds], candidates: Candidates) -> torch.Tensor:
        assert candidates.context is not None
        return candidates.context[:, :1] * candidates.token_ids


def test_a_guide_that_reads_the_state_is_shown_its_own_row_where_a_neighbour_drafts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guides = {"state": Contextual()}
    how: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    drafted = SamplingParams(weights={"state": 0.0}, seed=1, draft="lookup", draft_tokens=4, forced=(1, 2) * 6, **how)
    plain = SamplingParams(weights={"state": 2.0}, seed=2, **how)
    requests = [([1, 2, 1, 2], drafted), ([3, 4], plain), ([5], plain)]
    together = list(Decoder(BASE, guides).answers(requests))
    alone = [next(Decoder(BASE, guides).answers([request])) for request in requests]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert not caplog.records  # no step failed on the way


@pytest.mark.parametrize("draft", ["guide", "small"])
def test_a_row_in_which_the_guide_that_drafts_is_off_runs_undrafted(draft: str) -> None:
    model, small = HFModel(tiny_module("llama")), HFModel(tiny_module("llama", seed=5))
    decoder = Decoder(model, {"small": ARM(small)})
    weights = [{"small": 0.0}, {"small": 1.0}]
    prompts = [[5, 6, 7], [5, 6, 7]]
    how: dict[str, Any] = {"weights": weights, "max_new_tokens": 12, "seed": 1, "ignore_eos": True}
    plain = [answer.token_ids for answer in decoder.generate(prompts, **how)]
    assert [answer.token_ids for answer in decoder.generate(prompts, draft=draft, **how)] == plain


@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_a_step_guesses_no_more_than_it_has_memory_for(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is guessed in a step is bounded over all requests, and so is what a server has to set aside."""
    decoder = Decoder(BASE, max_rows=num_rows)
    places: list[int] = []
    logprobs_after = type(BASE.open()).logprobs_after

    def counted(session: Any, rows: Any, drafted: Any) -> Any:
        places.append(len(rows))
        return logprobs_after(session, rows, drafted)

    monkeypatch.setattr(type(BASE.open()), "logprobs_after", counted)
    how = SamplingParams(
        max_new_tokens=60, seed=1, ignore_eos=True, forced=(1, 2) * 30, draft="lookup", draft_tokens=32
    )
    for _ in range(num_rows):
        decoder.add("abab", how)
    while decoder.num_running or decoder.num_waiting:
        decoder.step()
    assert num_rows < max(places) <= num_rows + decoder.max_drafted
    assert decoder.max_drafted == max(32, num_rows)


def test_a_draft_is_no_longer_than_there_is_memory_for() -> None:
    with pytest.raises(OptionError, match="draft_tokens is 33; give a whole number of at least 1 and at most 32"):
        SamplingParams(draft="lookup", draft_tokens=33)


def test_an_answer_longer_than_what_drafts_for_it_holds_is_refused() -> None:
    small = TabularModel.random(9, seed=0, max_length=20)
    decoder = Decoder(BASE, drafters={"small": small})
    with pytest.raises(OptionError, match=r"small drafts and holds 20 tokens.*may come to 22. Ask for at most 18 new"):
        decoder.add("ab", SamplingParams(draft="small", max_new_tokens=20))
    how = {"max_new_tokens": 18, "seed": 1, "ignore_eos": True}
    [plain], [drafted] = (list(decoder.generate("ab", draft=draft, **how)) for draft in ("none", "small"))
    assert drafted.token_ids == plain.token_ids
    assert len(drafted.token_ids) == 18


def test_rows_that_begin_alike_share_no_drafted_token(caplog: pytest.LogCaptureFixture) -> None:
    """A row that took over another's drafted columns had no numbers after them: the step failed and was made anew."""
    model = HFModel(tiny_module("llama", max_position_embeddings=256), None)
    prompts = [[5, 6, 7, 8] * 24] * 4
    how: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True, "seed": 1}
    plain = [answer.token_ids for answer in Decoder(model).generate(prompts, **how)]
    drafted = Decoder(model).generate(prompts, draft="lookup", draft_tokens=3, **how)
    assert [answer.token_ids for answer in drafted] == plain
    assert "failed" not in caplog.text


def test_forced_tokens_are_read_ahead_where_something_is_forced_and_can_be_taken_back() -> None:
    with pytest.raises(OptionError, match="No token is forced"):
        Decoder(BASE).add("ab", SamplingParams(draft="forced"))
    forced = tuple(index % 9 for index in range(30))
    traces = {}
    for draft in ("none", "forced"):
        how = SamplingParams(forced=forced, max_new_tokens=33, ignore_eos=True, trace=True, seed=3, draft=draft)
        [answer] = Decoder(BASE, GUIDES).answers([("ab", replace(how, weights={"one": 0.7, "two": -0.5}))])
        traces[draft] = answer.token_ids, answer.trace
    assert traces["forced"] == traces["none"]
