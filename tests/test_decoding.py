"""The decoding loop: its order, its bookkeeping, and that no request sees another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.answers import Answer, finished
from trimtab.core import Candidates, LanguageModel, ModelSession, Prompt, SamplingParams, Selection, TokenIds
from trimtab.decoding import batch
from trimtab.decoding.decoder import Decoder
from trimtab.errors import DeadEndError, NotFiniteError, OptionError, PromptError, VocabularyMismatchError
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import ARM
from trimtab.mixing.rules import RandomAccepted
from trimtab.mixing.tracing import StepTensors
from trimtab.models.tabular import TabularModel

BASE = TabularModel.random(8, seed=0)
GUIDE = ARM(TabularModel.random(8, seed=1))
PROMPTS: list[Prompt] = ["abc", "d", "ef", "gfedcba", "aa"]


def run(decoder: Decoder, *requests: tuple[Prompt, SamplingParams]) -> dict[int, list[int]]:
    """Token ids by request id, requests added at once."""
    for prompt, params in requests:
        decoder.add(prompt, params)
    tokens: dict[int, list[int]] = {}
    while decoder.num_running or decoder.num_waiting:
        for step in decoder.step():
            tokens.setdefault(step.request_id, [])
            if step.token_id is not None:
                tokens[step.request_id].append(step.token_id)
    return tokens


class Scores:
    """A guide of one row of scores, which counts how often it is asked."""

    weight = 1.0
    needs_hidden = False
    needs_context = False
    selection = None
    max_length = None

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = torch.tensor(scores)
        self.calls = 0
        self.num_rows = 0

    def bind(self, base: LanguageModel) -> Scores:
        return self

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return base_ids

    def open(self, beside: ModelSession | None = None) -> Scores:
        return self

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self.num_rows += len(prompts)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        assert rows.tolist() == list(range(self.num_rows))

    def keep(self, rows: Tensor) -> None:
        self.num_rows = len(rows)

    def score(self, candidates: Candidates) -> Tensor:
        self.calls += 1
        return self.scores.expand(len(candidates.logprobs), -1)


def test_answers_come_in_the_order_of_the_prompts_with_more_prompts_than_rows() -> None:
    decoder = Decoder(BASE, {"g": GUIDE}, max_rows=2)
    answers = list(decoder.generate(PROMPTS, max_new_tokens=6, seed=3))
    assert [answer.prompt for answer in answers] == PROMPTS
    assert [answer.seed for answer in answers] == [3, 4, 5, 6, 7]


def test_a_request_gives_the_same_tokens_alone_in_company_and_joining_late() -> None:
    params = [
        SamplingParams(seed=index, weights={"g": weight}, temperature=heat, top_p=top_p, max_new_tokens=9)
        for index, (weight, heat, top_p) in enumerate(
            [(1, 1, 1), (0, 1, 0.8), (-0.3, 0.7, 1), (2, 0, 1), (0.3, 1.5, 0.9)]
        )
    ]
    requests = list(zip(PROMPTS, params, strict=True))
    alone = [next(iter(run(Decoder(BASE, {"g": GUIDE}), request).values())) for request in requests]
    assert list(run(Decoder(BASE, {"g": GUIDE}), *requests).values()) == alone
    late = Decoder(BASE, {"g": GUIDE}, max_rows=3)
    tokens: dict[int, list[int]] = {}
    ids = []
    for request in requests:
        ids.append(late.add(*request))
        for step in late.step():
            tokens.setdefault(step.request_id, []).append(step.token_id)  # type: ignore[arg-type]
    for request_id, more in run(late).items():
        tokens.setdefault(request_id, []).extend(more)
    assert [tokens[request_id] for request_id in ids] == alone


def test_weight_zero_does_not_run_the_guide_and_gives_the_bases_numbers() -> None:
    guide = Scores([-math.inf] * 8)
    decoder = Decoder(BASE, {"g": guide})
    with_guide = list(decoder.generate(PROMPTS, weights={"g": 0.0}, seed=1, max_new_tokens=5, trace=True))
    plain = list(Decoder(BASE).generate(PROMPTS, seed=1, max_new_tokens=5, trace=True))
    assert guide.calls == 0
    assert [answer.token_ids for answer in with_guide] == [answer.token_ids for answer in plain]
    assert [answer.kl for answer in with_guide] == [0.0] * 5
    for mine, theirs in zip(with_guide, plain, strict=True):
        assert mine.trace is not None
        assert theirs.trace is not None
        assert [step.chosen.mixed_logprob for step in mine.trace] == [step.chosen.base_logprob for step in theirs.trace]


def test_an_unguided_row_beside_a_guided_one_is_the_base_bit_for_bit() -> None:
    decoder = Decoder(BASE, {"g": GUIDE})
    answers = list(decoder.generate(["abc", "abc"], weights=[{"g": 0}, {"g": 3}], seed=1, trace=True, max_new_tokens=4))
    trace = answers[0].trace
    assert trace is not None
    assert [step.chosen.base_logprob for step in trace] == [step.chosen.mixed_logprob for step in trace]


def test_a_guide_left_out_runs_at_its_own_weight() -> None:
    loaded = Decoder(BASE, {"g": dataclasses.replace(GUIDE, weight=2.0)})
    asked = Decoder(BASE, {"g": GUIDE})
    mine, theirs = (
        next(decoder.generate("abc", weights=weights, seed=0))
        for decoder, weights in ((loaded, None), (asked, {"g": 2.0}))
    )
    assert mine.token_ids == theirs.token_ids
    assert mine.weights == {"g": 2.0}


def test_every_reason_to_finish() -> None:
    table = torch.full((6, 6), -20.0)
    for token in range(6):  # 1 -> 2 -> 3 -> 4 -> 5 -> 0, the end
        table[token, (token + 1) % 6] = 0.0
    chain = TabularModel.of_table(table, eos_ids=(0, 4))
    greedy = {"temperature": 0.0}
    letters = Decoder(chain)

    def reason(**how: Any) -> Answer:
        return next(letters.generate([1], **{**greedy, **how}))

    end = reason()
    assert (end.finish_reason, end.token_ids[-1]) == ("eos", 4)
    assert reason(max_new_tokens=2).finish_reason == "length"
    stopped = reason(stop="bc")
    assert (stopped.finish_reason, stopped.text) == ("stop", "")
    assert reason(ignore_eos=True, max_new_tokens=7).token_ids == (2, 3, 4, 5, 0, 1, 2)


def test_the_context_ends_an_answer_and_refuses_a_prompt() -> None:
    short = TabularModel.random(8, seed=0, eos_ids=(), max_length=6)
    answer = next(Decoder(short).generate([[1, 2, 3]]))
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 3)
    with pytest.raises(PromptError, match="6 tokens; the model holds 6"):
        Decoder(short).add([1] * 6)
    long = TabularModel.random(8, seed=0, eos_ids=())
    with pytest.raises(PromptError, match="guide g holds 6"):
        Decoder(long, {"g": ARM(short)}).add([1] * 6)
    answer = next(Decoder(long, {"g": ARM(short)}).generate([[1, 2]], seed=0))
    assert len(answer.token_ids) == 4


def test_a_broken_guide_fails_its_request_and_not_the_batch() -> None:
    decoder = Decoder(BASE, {"nan": Scores([math.nan] * 8), "never": Scores([-math.inf] * 8)})
    weights = [{"nan": 0, "never": 0}, {"nan": 1, "never": 0}, {"nan": 0, "never": -1}]
    ids = [decoder.add("abc", SamplingParams(weights=how, seed=0, max_new_tokens=3)) for how in weights]
    ended: dict[int, Any] = {}
    while decoder.num_running or decoder.num_waiting:
        ended.update({step.request_id: step for step in decoder.step() if step.finish_reason})
    assert ended[ids[0]].finish_reason in ("eos", "length")
    assert isinstance(ended[ids[1]].error, NotFiniteError)
    assert "Guide nan" in str(ended[ids[1]].error)
    assert isinstance(ended[ids[2]].error, DeadEndError)
    first, failed, last = decoder.generate(["abc"] * 3, weights=[weights[0], weights[1], weights[0]], seed=0)
    assert (failed.finish_reason, type(failed.error)) == ("error", NotFiniteError)
    assert [first.error, last.error] == [None, None]
    with pytest.raises(NotFiniteError):
        list(finished(decoder.generate("abc", weights=weights[1])))


def test_nan_of_the_model_is_an_error_and_not_token_zero() -> None:
    broken = TabularModel(lambda prefix: torch.full((8,), math.nan), 8)
    answer = next(Decoder(broken).generate("abc"))
    assert isinstance(answer.error, NotFiniteError)
    assert "The model gives NaN" in str(answer.error)


def test_cancel_frees_the_row_and_leaves_the_others() -> None:
    params = [SamplingParams(seed=index, weights={"g": 1}, max_new_tokens=8, ignore_eos=True) for index in range(3)]
    alone = next(iter(run(Decoder(BASE, {"g": GUIDE}), ("ef", params[2])).values()))
    decoder = Decoder(BASE, {"g": GUIDE}, max_rows=2)
    first, second = (decoder.add(prompt, how) for prompt, how in zip(["abc", "d"], params, strict=False))
    third = decoder.add("ef", params[2])
    decoder.step()
    decoder.cancel(first)
    decoder.cancel(999)
    assert (decoder.num_running, decoder.num_waiting) == (1, 1)
    tokens = run(decoder)
    assert tokens[third] == alone
    assert first not in tokens
    assert len(tokens[second]) == 7
    decoder.cancel(second)
    assert decoder.step() == []


def test_a_guide_may_read_a_prompt_of_its_own() -> None:
    def marginal(prefix: tuple[int, ...]) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(prefix[0]), 8).float() * 30

    first_token = TabularModel(marginal, 8)
    flat = TabularModel(lambda prefix: torch.zeros(8), 8)
    for prompt, expected in ((None, 3), ("f", 6), (lambda given: "a" + str(given), 1)):
        guide = ARM(first_token, prompt=prompt)
        answer = next(Decoder(flat, {"g": guide}).generate("c", temperature=0, max_new_tokens=1))
        assert answer.token_ids == (expected,)


def test_plausibility_masks_the_base_before_mixing() -> None:
    base = TabularModel(lambda prefix: torch.tensor([0.0, 0.5, 0.4, 0.05, 0.05]).log(), 5, eos_ids=())
    decoder = Decoder(base, {"g": Scores([0.0, 0.0, 0.0, 50.0, 50.0])})
    free = next(decoder.generate("a", temperature=0, max_new_tokens=1))
    held = next(decoder.generate("a", temperature=0, max_new_tokens=1, plausibility=0.2))
    assert (free.token_ids[0] in (3, 4), held.token_ids) == (True, (1,))


def test_a_repetition_penalty_divides_probabilities_of_tokens_seen() -> None:
    base = TabularModel(lambda prefix: torch.tensor([0.1, 0.5, 0.4]).log(), 3, eos_ids=())
    answers = Decoder(base).generate(["a"], temperature=0, max_new_tokens=3, repetition_penalty=1.5)
    assert next(answers).token_ids == (1, 2, 1)  # 0.5/1.5 < 0.4; then both are seen


def test_the_trace_names_every_part() -> None:
    decoder = Decoder(BASE, {"g": GUIDE, "off": GUIDE})
    answer = next(
        decoder.generate("abc", weights={"g": 1.5, "off": 0}, seed=0, trace=True, num_alternatives=3, max_new_tokens=2)
    )
    assert answer.trace is not None
    assert answer.kl == pytest.approx(sum(step.kl for step in answer.trace))
    prefix = BASE.tokenizer.encode("abc")  # type: ignore[union-attr]
    for step, token in zip(answer.trace, answer.token_ids, strict=True):
        base = BASE.next_logprobs(prefix)
        score = GUIDE.model.next_logprobs(prefix)  # type: ignore[attr-defined]
        mixed = torch.log_softmax(base + 1.5 * score, -1)
        assert step.chosen.token_id == token
        assert step.chosen.base_logprob == pytest.approx(float(base[token]), abs=1e-5)
        assert step.chosen.guide_scores == {"g": pytest.approx(float(score[token]), abs=1e-5)}
        assert step.chosen.mixed_logprob == pytest.approx(float(mixed[token]), abs=1e-5)
        assert step.chosen.base_rank == int((base > base[token]).sum())
        assert step.chosen.mixed_rank == int((mixed > mixed[token]).sum())
        assert step.kl == pytest.approx(float((mixed.exp() * (mixed - base)).sum()), abs=1e-5)
        assert {rival.token_id for rival in step.alternatives} == {
            *mixed.topk(3).indices.tolist(),
            *base.topk(3).indices.tolist(),
        }
        prefix = [*prefix, token]


def test_what_the_caller_gave_is_left_alone() -> None:
    weights = {"g": 1.0}
    prompt = [1, 2, 3]
    list(Decoder(BASE, {"g": GUIDE}).generate([prompt, prompt], weights=weights, max_new_tokens=3))
    assert (weights, prompt) == ({"g": 1.0}, [1, 2, 3])


def test_a_seed_is_drawn_and_named_where_none_is_given() -> None:
    decoder = Decoder(BASE)
    answer = next(decoder.generate("abc", max_new_tokens=8))
    again = next(decoder.generate("abc", max_new_tokens=8, seed=answer.seed))
    assert answer.token_ids == again.token_ids


def test_generate_leaves_requests_that_were_added_alone() -> None:
    decoder = Decoder(BASE)
    request = decoder.add("abc", SamplingParams(seed=0, max_new_tokens=4, ignore_eos=True))
    decoder.step()
    list(decoder.generate(PROMPTS, max_new_tokens=3))
    assert len(run(decoder)[request]) == 3


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"weights": {"helpfull": 1.0}}, "Did you mean 'helpful'"),
        ({"weights": {"helpful": math.nan}}, "nan; give a finite number"),
        ({"weights": [{}, {}]}, "1 prompts and 2 mappings"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": 2}, "min_p is 2"),
        ({"plausibility": -0.1}, "plausibility is -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"stop": [""]}, "stop is"),
        ({"seed": -1}, "seed is -1"),
        ({"num_alternatives": -1}, "num_alternatives is -1"),
        ({"weights": {"helpful": "1"}}, "'1'; give a finite number"),
        ({"weights": {"helpful": 1e39}}, r"1e\+39; give a finite number"),
        ({"weights": {"helpful": 10**400}}, "give a finite number"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": 10**400}, "give a number of at least 0"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": [0.9]}, "top_p is"),
        ({"min_p": None}, "min_p is None"),
        ({"max_new_tokens": 3.0}, "max_new_tokens is 3.0"),
        ({"repetition_penalty": 10**400}, "give a number above 0"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"stop": (3,)}, "stop is"),
    ],
)
def test_options_out_of_range_are_named_before_anything_runs(how: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Decoder(BASE, {"helpful": GUIDE}).generate(["abc"], **how)


@pytest.mark.parametrize(("prompt", "words"), [("", "empty"), ([], "empty"), ([99], "outside the vocabulary")])
def test_prompts_that_cannot_be_read(prompt: Prompt, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        Decoder(BASE).add(prompt)


def test_a_vocabulary_of_the_same_size_and_other_content_is_refused() -> None:
    other = TabularModel.random(8, seed=1, eos_ids=(7,))
    with pytest.raises(VocabularyMismatchError, match="another id or none"):
        Decoder(BASE, {"g": ARM(other)})


def test_forced_tokens_are_taken_and_scored_then_the_request_goes_on_as_it_likes() -> None:
    decoder = Decoder(BASE, {"g": GUIDE})
    free = next(decoder.generate("abc", weights={"g": 1.5}, seed=3, max_new_tokens=5, ignore_eos=True, trace=True))
    other = [(token + 1) % 7 for token in free.token_ids[:3]]
    params = SamplingParams(
        weights={"g": 1.5}, forced=tuple(other), max_new_tokens=5, ignore_eos=True, trace=True, seed=3
    )
    decoder.add("abc", params)
    steps = [step for _ in range(5) for step in decoder.step()]
    assert [step.token_id for step in steps][:3] == other
    session, guide = BASE.open(), GUIDE.model.open()
    for opened in (session, guide):
        opened.admit([free.prompt_ids])
    for step in steps[:3]:
        assert step.trace is not None
        policy = torch.log_softmax(session.logprobs() + 1.5 * guide.logprobs(), dim=-1)[0]
        assert step.token_id is not None
        assert step.trace.chosen.mixed_logprob == pytest.approx(float(policy[step.token_id]), abs=1e-5)
        for opened in (session, guide):
            opened.advance(torch.tensor([0]), torch.tensor([step.token_id]))


def test_a_forced_token_that_is_none_is_named() -> None:
    with pytest.raises(OptionError, match="forced is"):
        SamplingParams(forced=(1.5,))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="Forced token 99"):
        Decoder(BASE).add("abc", SamplingParams(forced=(1, 99)))


def test_a_top_k_beyond_any_vocabulary_keeps_all() -> None:
    decoder = Decoder(TabularModel.random(8, seed=0))
    huge, none = (list(decoder.generate([1, 2], top_k=k, seed=0, max_new_tokens=5)) for k in (10**30, 0))
    assert huge == none


@pytest.mark.parametrize("extreme", [5e-324, 1e-40, 1e40, 1.7e308])
@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_numbers_that_float32_cannot_hold_are_still_numbers(name: str, extreme: float) -> None:
    """One request's must not break the batch of others, either."""
    decoder = Decoder(TabularModel.random(8, seed=0), {"veto": ARM(TabularModel.random(8, seed=1))})
    how = {"plausibility": 0.3, "ignore_eos": True, "seed": 0, name: extreme}  # some tokens are at −inf
    decoder.add([1, 2], SamplingParams(max_new_tokens=4, **how))
    other = decoder.add([1, 2], SamplingParams(max_new_tokens=4, ignore_eos=True, seed=0))
    tokens = [step.token_id for _ in range(4) for step in decoder.step() if step.request_id == other]
    [alone] = decoder.generate([1, 2], max_new_tokens=4, ignore_eos=True, seed=0)
    assert tokens == list(alone.token_ids)
    [answer] = decoder.answers([([1, 2], SamplingParams(max_new_tokens=30, ignore_eos=True, **{name: extreme}))])
    [traced] = decoder.answers([([1, 2], SamplingParams(max_new_tokens=4, weights={"veto": 1.0}, trace=True, **how))])
    assert not any(math.isnan(token.kl) for token in traced.trace)
    if name == "repetition_penalty":  # a token that was there is all that is left, or never comes again
        repeated = [token in (1, 2, *answer.token_ids[:index]) for index, token in enumerate(answer.token_ids)]
        assert all(repeated) if extreme < 1 else not any(repeated[:6])


def test_a_traced_step_holds_what_was_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """After temperature and filters; where a guide selects, its rule's policy at the temperature."""
    steps: list[StepTensors] = []
    sound = batch.traces

    def watched(step: StepTensors, *args: Any) -> Any:
        steps.append(step)
        return sound(step, *args)

    monkeypatch.setattr(batch, "traces", watched)
    torch.manual_seed(0)
    agent = Agent(AgentNetwork(4, 8).requires_grad_(False), selection=Selection(RandomAccepted()))
    decoder = Decoder(BASE, {"g": GUIDE, "agent": agent})
    off = {"g": 1.0, "agent": 0.0}
    how: list[dict[str, Any]] = [
        {"weights": off, "temperature": 0.5, "top_k": 3, "trace": True},
        {"weights": {"g": 1.0, "agent": 1e-6}, "temperature": 0.7, "top_k": 4, "top_p": 1.0, "trace": True},
        {"weights": off, "temperature": 0.0},
    ]
    for row, options in enumerate(how):
        decoder.add([1, 2, 3], SamplingParams(max_new_tokens=1, seed=row, **options))
    tokens = [step.token_id for step in decoder.step()]
    [step] = steps
    assert step.final is not None
    mixed = torch.log_softmax(BASE.next_logprobs([1, 2, 3]) + GUIDE.model.next_logprobs([1, 2, 3]), -1)
    best = mixed.topk(4).indices
    expected = torch.full((3, 8), -math.inf)
    expected[0, best[:3]] = torch.log_softmax(2 * mixed, -1)[best[:3]]
    expected[1, best] = -math.log(4)  # all are accepted, each as likely
    expected[2, best[0]] = 0.0
    torch.testing.assert_close(step.final.softmax(-1), expected.softmax(-1))
    assert torch.equal(step.mixed[0], step.mixed[2])
    assert tokens[2] == best[0]
    assert all(step.final[row, token] > -math.inf for row, token in enumerate(tokens))


@pytest.mark.parametrize("weights", [1.0, "g"])
def test_weights_that_are_no_mapping_are_refused_in_words(weights: Any) -> None:
    with pytest.raises(OptionError, match="give a mapping from guides to numbers"):
        list(Decoder(BASE).generate(["abc"], weights=weights))
