"""Laws of constraints: answers satisfy them, the policy is the mix restricted, and company changes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

import pytest
import torch

from tests.constraining.texts import accepts, random_constraint
from trimtab import (
    ARM,
    Answer,
    Candidates,
    Constraint,
    Decoder,
    HFModel,
    SamplingParams,
    StatelessGuide,
    TabularModel,
    Tilt,
    counted_passes,
)

PROMPT = "Say it: "


def _answers(model: HFModel, wanted: Sequence[SamplingParams]) -> list[Answer]:
    return list(Decoder(model).answers([(PROMPT, params) for params in wanted]))


def _check_ended(model: HFModel, seeds: Sequence[int]) -> int:
    wanted = [
        SamplingParams(constraint=random_constraint(seed), seed=seed, max_new_tokens=90, temperature=0.8)
        for seed in seeds
    ]
    num_ended = 0
    for params, answer in zip(wanted, _answers(model, wanted), strict=True):
        assert answer.finish_reason in ("eos", "length"), (params.constraint, answer.error)
        if answer.finish_reason == "eos":
            num_ended += 1
            assert params.constraint is not None
            assert accepts(params.constraint, answer.text), (params.constraint, answer.text)
    return num_ended


def test_an_answer_that_ended_is_accepted_by_another_judge(writer: HFModel) -> None:
    assert _check_ended(writer, range(14)) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_500_answers_that_ended_are_accepted_by_another_judge(writer: HFModel, part: int) -> None:
    assert _check_ended(writer, range(1000 + 50 * part, 1050 + 50 * part)) >= 33


def test_without_its_constraint_the_model_says_something_else(writer: HFModel) -> None:
    """Else the law above says nothing."""
    constraint = Constraint.json_object()
    (free,) = _answers(writer, [SamplingParams(seed=1, max_new_tokens=40)])
    assert not accepts(constraint, free.text)


WORDS = re.compile("(ab|cad?)*e")


def _may_go_on(text: str) -> bool:
    """Whether a text begins one that `WORDS` matches, found by trying."""
    return any(WORDS.fullmatch(text + "".join(rest)) for n in range(3) for rest in itertools.product("abcde", repeat=n))


def _restricted(model: TabularModel, guide: TabularModel | None, weight: float, answer: Sequence[int]) -> torch.Tensor:
    """[V]: the mix over the tokens that some accepted text continues with, by arithmetic."""
    prompt = model.tokenizer.encode("a") if model.tokenizer else []
    mix = model.next_logprobs([*prompt, *answer])
    if guide is not None:
        mix = mix + weight * guide.next_logprobs([*prompt, *answer])
    assert model.tokenizer is not None
    text = model.tokenizer.decode(list(answer))
    for token in range(model.vocab_size):
        allowed = (
            WORDS.fullmatch(text) if token in model.eos_ids else _may_go_on(text + model.tokenizer.decode([token]))
        )
        if not allowed:
            mix[token] = -math.inf
    return torch.log_softmax(mix, dim=-1)


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_the_policy_is_the_mix_restricted_to_what_is_allowed(weight: float) -> None:
    base, expert = TabularModel.random(7, seed=0), TabularModel.random(7, seed=1)
    decoder = Decoder(base, {"expert": ARM(expert)})
    params = SamplingParams(
        weights={"expert": weight},
        constraint=Constraint.regex(WORDS.pattern),
        trace=True,
        num_alternatives=7,
        max_new_tokens=12,
    )
    wanted = [("a", dataclasses.replace(params, seed=seed)) for seed in range(6)]
    for answer in decoder.answers(wanted):
        for index, step in enumerate(answer.trace or ()):
            expected = _restricted(base, expert if weight else None, weight, answer.token_ids[:index])
            said = {one.token_id: one.mixed_logprob for one in (*step.alternatives, step.chosen)}
            for token in range(7):
                known = said.get(token, -math.inf)
                assert known == pytest.approx(float(expected[token]), abs=1e-4)
            own_base = base.next_logprobs([*answer.prompt_ids, *answer.token_ids[:index]])
            possible = expected > -math.inf
            kl = float((expected[possible].exp() * (expected - own_base)[possible]).sum())
            assert step.kl == pytest.approx(kl, abs=1e-4)


def _mixed_requests() -> list[SamplingParams]:
    constraints = [
        Constraint.json_schema({"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 4}),
        None,
        Constraint.regex(r"(ab|cd){3,5}\.(ab|cd){3,5}"),
        Constraint.choice(["yes", "no", "yes, yes"]),
        Constraint.grammar('start: "(" start ")" | "x"'),
        Constraint.grammar('root ::= "<" root ">" | [0-9]'),
    ]
    return [
        SamplingParams(constraint=constraint, seed=index, max_new_tokens=30, trace=True)
        for index, constraint in enumerate(constraints)
    ]


def test_an_answer_is_the_same_alone_in_company_and_with_drafts(writer: HFModel) -> None:
    wanted = _mixed_requests()
    together = _answers(writer, wanted)
    for params, answer in zip(wanted, together, strict=True):
        (alone,) = _answers(writer, [params])
        assert alone.token_ids == answer.token_ids
    for draft in ("lookup", "certain"):
        how = [dataclasses.replace(params, draft=draft if params.constraint else "lookup") for params in wanted]
        drafted = _answers(writer, [dataclasses.replace(params, draft_tokens=3) for params in how])
        assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in together]


def test_what_is_certain_costs_no_pass_of_its_own(writer: HFModel) -> None:
    schema = {"type": "object", "properties": {"description": {"const": "nothing else"}}, "required": ["description"]}
    constraint = Constraint.json_schema({**schema, "additionalProperties": False})
    passes = {}
    for draft in ("none", "certain"):
        with counted_passes(writer) as count:
            (answer,) = _answers(writer, [SamplingParams(constraint=constraint, seed=2, draft=draft, draft_tokens=12)])
        assert accepts(constraint, answer.text)
        passes[draft] = count.num_passes
    assert passes["certain"] < passes["none"] / 3


def test_a_constraint_does_not_reach_a_neighbour(writer: HFModel) -> None:
    free = SamplingParams(seed=5, max_new_tokens=20, trace=True)
    (alone,) = _answers(writer, [free])
    others = _mixed_requests()
    together = _answers(writer, [free, *others[:3], free, *others[3:], free])
    for beside in (together[0], together[4], together[-1]):
        assert beside.token_ids == alone.token_ids
        assert [step.chosen.mixed_logprob for step in beside.trace or ()] == pytest.approx(
            [step.chosen.base_logprob for step in beside.trace or ()]
        )


def test_a_step_that_fails_leaves_a_constraint_where_it_was(writer: HFModel) -> None:
    """The batch is thrown away in the middle of an answer, and its requests go on with the same tokens."""
    failed: list[bool] = []

    class Stumbling(Tilt):
        def policy(self, candidates: Candidates, scores: torch.Tensor) -> torch.Tensor:
            failed.append(len(failed) % 7 == 3)
            if failed[-1]:
                raise RuntimeError("stumbles")
            return super().policy(candidates, scores)

    wanted = [dataclasses.replace(params, weights={"level": 1.0}) for params in _mixed_requests()]
    guides = {"level": _Level()}
    sound = list(Decoder(writer, guides).answers([(PROMPT, params) for params in wanted]))
    shaken = list(Decoder(writer, guides, rule=Stumbling()).answers([(PROMPT, params) for params in wanted]))
    assert any(failed)
    assert [answer.token_ids for answer in shaken] == [answer.token_ids for answer in sound]


class _Level(StatelessGuide):
    """Scores every token alike."""

    def score(self, rows: Sequence[Sequence[int]], candidates: Candidates) -> torch.Tensor:
        return torch.zeros_like(candidates.logprobs)


def test_seeds_draw_every_choice(writer: HFModel) -> None:
    texts = {
        answer.text
        for answer in _answers(
            writer,
            [
                SamplingParams(
                    constraint=Constraint.choice(["aa", "ab", "b"]), seed=seed, max_new_tokens=9, temperature=3.0
                )
                for seed in range(40)
            ],
        )
    }
    assert texts == {"aa", "ab", "b"}


def test_random_constraints_differ() -> None:
    assert len({random_constraint(seed).text for seed in range(30)}) > 20
