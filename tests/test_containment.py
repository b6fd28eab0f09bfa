"""One request cannot harm another: errors planted in every stage of a step, and what becomes of its neighbours."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.faults import STAGES, VERBS, FaultyModel, Nth, PlantedError, always, faulty_request, planted, sound_requests
from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import tiny_model
from trimtab.answers import Step
from trimtab.core import Candidates, SamplingParams, TokenIds
from trimtab.decoding import decoder as decoding
from trimtab.decoding.decoder import Decoder
from trimtab.errors import UnexpectedError
from trimtab.guides.arm import AdapterARM
from trimtab.guides.stateless import StatelessGuide
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel, TabularSession

Tokens = list[int | None]


def run(decoder: Decoder, found: dict[int, list[Step]], most: int = 500) -> None:
    """Step until nothing runs; a loop without an end is a failure."""
    for _ in range(most):
        if not (decoder.num_running or decoder.num_waiting):
            return
        for step in decoder.step():
            found.setdefault(step.request_id, []).append(step)
    raise AssertionError("the loop does not end")


def tokens_of(steps: list[Step]) -> Tokens:
    return [step.token_id for step in steps]


@cache
def alone() -> list[Tokens]:
    """What each sound request gets by itself, where nothing fails."""
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        for prompt, params in sound_requests():
            decoder = planted("", always, patch)
            found: dict[int, list[Step]] = {}
            decoder.add(prompt, params)
            run(decoder, found)
            answers.append(tokens_of(found[0]))
    return answers


@pytest.mark.parametrize(
    ("stage", "chunk"), [*((stage, None) for stage in STAGES), *((f"model {verb}", 2) for verb in VERBS)]
)
def test_an_error_ends_the_request_that_caused_it_and_no_other(
    stage: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = alone()
    decoder = planted(stage, always, monkeypatch, prefill_chunk=chunk)
    found: dict[int, list[Step]] = {}
    ids = [decoder.add(*request) for request in sound_requests()[:3]]
    for _ in range(2):
        for step in decoder.step():
            found.setdefault(step.request_id, []).append(step)
    bad = decoder.add(*faulty_request(stage))
    ids += [decoder.add(*request) for request in sound_requests()[3:]]
    run(decoder, found)
    assert [tokens_of(found[number]) for number in ids] == expected
    end = found[bad][-1]
    if stage.endswith(" keep"):  # nobody's fault, since it strikes where a row leaves: everybody goes on
        assert end.finish_reason == "length"
    else:
        assert (end.finish_reason, end.token_id) == ("error", None)
        assert isinstance(end.error, UnexpectedError)
        assert isinstance(end.error.__cause__, PlantedError)
        assert "planted" not in str(end.error)  # it may hold paths, and goes to a client
        assert len(found[bad]) == (2 if stage == "text" else 1 + len(tokens_of(found[bad])[:-1]))
    with_traceback = [record for record in caplog.records if record.exc_info]
    assert len(with_traceback) == 1


@pytest.mark.parametrize("number", [1, 7])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "text"])
def test_an_error_that_is_nobodys_ends_nobody(stage: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone()
    decoder = planted(stage, Nth(number), monkeypatch)
    found: dict[int, list[Step]] = {}
    ids = [decoder.add(*request) for request in sound_requests()]
    run(decoder, found)
    assert [tokens_of(found[number]) for number in ids] == expected


class Flaky(StatelessGuide):
    """It scores nothing; one of its calls fails, or all of them do."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self._fails, self._num = fails, 0

    def score(self, rows: Sequence[TokenIds], candidates: Candidates) -> Tensor:
        self._num += 1
        if self._fails(self._num):
            raise PlantedError("planted")
        return torch.zeros_like(candidates.logprobs)


@pytest.mark.parametrize("number", range(1, 13))
def test_an_error_that_passes_while_the_guilty_is_looked_for_ends_no_other(number: int) -> None:
    """Two faults at once: a request that always fails, and an error that strikes a neighbour once, alone or not."""
    base = TabularModel.random(9, seed=0)
    guides = {"deadly": Flaky(lambda num: True), "once": Flaky(lambda num: num == number)}
    decoder = Decoder(base, guides)
    how: dict[str, Any] = {"max_new_tokens": 3, "ignore_eos": True}
    sound = [("ab", SamplingParams(weights={"deadly": 0.0, "once": 1.0}, seed=seed, **how)) for seed in range(3)]
    deadly = ("ab", SamplingParams(weights={"deadly": 1.0, "once": 0.0}, seed=9, **how))
    answers = list(decoder.answers([*sound[:2], deadly, sound[2]]))
    assert [answer.finish_reason for answer in answers] == ["length", "length", "error", "length"]
    expected = [next(iter(Decoder(base).generate("ab", seed=seed, **how))).token_ids for seed in range(3)]
    assert [answer.token_ids for answer in answers if answer.error is None] == expected


def test_generate_returns_the_others_answers_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone()
    decoder = planted("model logprobs", always, monkeypatch)
    requests = sound_requests()
    answers = list(decoder.answers([*requests[:2], faulty_request("model logprobs"), *requests[2:]]))
    assert [answer.finish_reason for answer in answers] == ["length"] * 2 + ["error"] + ["length"] * 3
    assert [list(answer.token_ids) for answer in answers if answer.error is None] == expected
    assert answers[2].token_ids == ()


def test_several_bad_requests_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone()
    decoder = planted("guide logprobs", always, monkeypatch)
    bad = faulty_request("guide logprobs")
    answers = list(decoder.answers([bad, *sound_requests()[:3], bad, bad, *sound_requests()[3:]]))
    assert [list(answer.token_ids) for answer in answers if answer.error is None] == expected
    assert sum(answer.error is not None for answer in answers) == 3


class Narrow(TabularSession):
    """Memory for two rows."""

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        if self.num_rows > 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().logprobs(rows)


class NarrowModel(TabularModel):
    def open(self, beside: object = None) -> Narrow:
        return Narrow(self)


def test_memory_for_fewer_rows_than_were_asked_for_decodes_fewer_at_a_time() -> None:
    plain = TabularModel.random(9, seed=0, eos_ids=())
    narrow = NarrowModel(plain.next_logprobs, 9, eos_ids=())
    prompts = [[1 + number] for number in range(7)]
    expected = [answer.token_ids for answer in Decoder(plain).generate(prompts, max_new_tokens=20, seed=0)]
    assert [answer.token_ids for answer in Decoder(narrow).generate(prompts, max_new_tokens=20, seed=0)] == expected


def test_the_batch_grows_again_when_faults_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "CALM_STEPS", 3)
    narrow = NarrowModel(TabularModel.random(9, seed=0).next_logprobs, 9, eos_ids=())
    decoder = Decoder(narrow, max_rows=4)
    for number in range(4):
        decoder.add([1 + number], SamplingParams(max_new_tokens=30))
    for _ in range(3):  # four at a time fail, and again; then two
        decoder.step()
    assert decoder.num_running == 2
    monkeypatch.setattr(Narrow, "logprobs", TabularSession.logprobs)
    for _ in range(5):
        decoder.step()
    assert decoder.num_running == 4


@pytest.mark.parametrize("verb", ["admit", "logprobs", "advance", "known"])
def test_a_model_that_always_fails_ends_every_request(verb: str) -> None:
    def broken(taking_part: bool) -> None:
        raise PlantedError("planted")

    decoder = Decoder(FaultyModel(0, verb, broken), max_rows=3)
    found: dict[int, list[Step]] = {}
    for number in range(5):
        decoder.add([1 + number], SamplingParams(max_new_tokens=3, ignore_eos=True))
    run(decoder, found)
    ends = [steps[-1].finish_reason for steps in found.values()]
    if verb == "advance":  # it strikes after the tokens of a step were made, so some come to their end
        assert ends.count("error") >= 3
    else:
        assert ends == ["error"] * 5


def test_a_model_that_cannot_be_opened_ends_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(TabularModel.random(9, seed=0))
    monkeypatch.setattr(TabularModel, "open", always_broken)
    found: dict[int, list[Step]] = {}
    ids = [decoder.add([1]), decoder.add([2])]
    run(decoder, found)
    assert [found[number][-1].finish_reason for number in ids] == ["error"] * 2


def always_broken(*args: object) -> None:
    raise PlantedError("planted")


def test_a_fault_in_a_cancellation_leaves_the_others() -> None:
    expected = list(Decoder(FaultyModel(0)).generate([[1], [2]], max_new_tokens=8, ignore_eos=True, seed=0))
    decoder = Decoder(FaultyModel(0, "keep", Nth(1)))
    ids = [decoder.add([1 + row], SamplingParams(max_new_tokens=8, ignore_eos=True, seed=row)) for row in range(2)]
    gone = decoder.add([3], SamplingParams(max_new_tokens=8))
    found: dict[int, list[Step]] = {}
    for step in decoder.step():
        found.setdefault(step.request_id, []).append(step)
    decoder.cancel(gone)
    assert decoder.num_running + decoder.num_waiting == 2
    run(decoder, found)
    assert [tuple(tokens_of(found[number])) for number in ids] == [answer.token_ids for answer in expected]


@pytest.mark.parametrize(("verb", "number"), [("admit", 2), ("logprobs", 3), ("advance", 2)])
def test_a_decoder_is_sound_after_ctrl_c(verb: str, number: int) -> None:
    def interrupt_once(taking_part: bool) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    left = number
    [expected] = Decoder(FaultyModel(0)).generate([[1]], max_new_tokens=8, ignore_eos=True, seed=0)
    decoder = Decoder(FaultyModel(0, verb, interrupt_once))
    kept = decoder.add([1], SamplingParams(max_new_tokens=8, ignore_eos=True, seed=0))
    gone = decoder.add([2], SamplingParams(max_new_tokens=8))
    decoder.step()
    decoder.add([3], SamplingParams(max_new_tokens=2, seed=0))
    with pytest.raises(KeyboardInterrupt):
        run(decoder, {})
    decoder.cancel(gone)
    found: dict[int, list[Step]] = {}
    run(decoder, found)
    tail = tokens_of(found[kept])
    assert tail
    assert list(expected.token_ids[-len(tail) :]) == tail


def test_a_device_that_is_lost_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's fault, and nothing can go on: a server has to end and be started again."""
    monkeypatch.setattr(decoding, "is_lost", lambda device: True)
    decoder = Decoder(FaultyModel(0, "logprobs", always_broken))
    decoder.add([1])
    with pytest.raises(PlantedError):
        decoder.step()


def test_no_memory_is_held_by_an_error_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback holds the frames of the step, and they a batch's whole cache."""
    monkeypatch.setattr(decoding.log, "error", lambda *words, **how: None)  # pytest keeps what is logged
    seen: list[weakref.ref[object]] = []

    class Watched(FaultyModel):
        def open(self, beside: object = None) -> TabularSession:  # type: ignore[override]
            session = super().open(None)
            seen.append(weakref.ref(session))
            return session  # type: ignore[return-value]

    decoder = Decoder(Watched(0, "logprobs", lambda taking_part: always(True)))
    decoder.add([1])
    steps = decoder.step()
    gc.collect()
    assert steps[0].error is not None
    assert [ref() for ref in seen] == [None] * len(seen)


def test_the_same_fault_again_and_again_does_not_fill_a_log(caplog: pytest.LogCaptureFixture) -> None:
    broken: Callable[[bool], None] = lambda taking_part: always(True)  # noqa: E731
    with caplog.at_level(logging.ERROR):
        decoder = Decoder(FaultyModel(0, "logprobs", broken))
        for _ in range(6):
            decoder.add([1])
        run(decoder, {})
    assert sum(record.exc_info is not None for record in caplog.records) == 1
    assert max(len(record.getMessage()) for record in caplog.records) < 700


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_amid_a_real_models_pass_leaves_the_others(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose pass fails, with adapters in it: before the layers ran, or when the caches were written."""
    model = tiny_model("llama")
    guides = {"lora": AdapterARM(random_lora(model, seed=5))}
    how = {"max_new_tokens": 6, "ignore_eos": True}
    requests = [
        ([3 + row, 4, 5], SamplingParams(seed=row, weights={"lora": weight}, **how))  # type: ignore[arg-type]
        for row, weight in enumerate((1.0, 0.0, 0.5, 1.0))
    ]
    expected = [answer.token_ids for request in requests for answer in Decoder(model, guides).answers([request])]
    sound = HFModel.forward

    def faulty(self: HFModel, token_ids: Tensor, *args: Any) -> Tensor:
        states = sound(self, token_ids, *args) if when == "after" else None
        if bool((token_ids == 2).any()) and token_ids.shape[1] > 1:  # in a prompt
            raise PlantedError("planted")
        return sound(self, token_ids, *args) if states is None else states

    monkeypatch.setattr(HFModel, "forward", faulty)
    bad = ([9, 2, 9, 9], SamplingParams(weights={"lora": 1.0}, seed=0, max_new_tokens=6))
    decoder = Decoder(model, guides)
    found: dict[int, list[Step]] = {}
    ids = [decoder.add(*request) for request in requests[:2]]
    for step in decoder.step():
        found.setdefault(step.request_id, []).append(step)
    lost = decoder.add(*bad)
    ids += [decoder.add(*request) for request in requests[2:]]
    run(decoder, found)
    assert [tuple(tokens_of(found[number])) for number in ids] == expected
    assert isinstance(found[lost][-1].error, UnexpectedError)
    assert decoder.num_rows == 0
