"""Constraints and the methods: guides that select see allowed candidates alone, best-of-N keeps the form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from trimtab import Constraint, Decoder, SamplingParams, Selection, StatelessGuide, TabularModel
from trimtab.core import Candidates, SelectingRule, TokenIds
from trimtab.errors import OptionError
from trimtab.methods.best_of_n import BestOfN
from trimtab.methods.method import Policy
from trimtab.methods.rewriting import Rewriting
from trimtab.methods.segments import SegmentRejection
from trimtab.mixing.rules import FirstAccepted, MostAccepted, WeighedCandidates

MODEL = TabularModel.random(9, seed=4, scale=2.0)
PATTERN = "(ab|cd){1,3}h"
CONSTRAINT = Constraint.regex(PATTERN)


class Picky(StatelessGuide):
    """Selects by the token's id, and remembers what it was asked about."""

    weight = 0.5

    def __init__(self, rule: SelectingRule) -> None:
        self.selection = Selection(rule)
        self.asked: set[int] = set()

    def score(self, rows: Sequence[TokenIds], candidates: Candidates) -> torch.Tensor:
        possible = candidates.logprobs > -torch.inf
        self.asked |= set(candidates.token_ids[possible].tolist())
        return (candidates.token_ids % 3).float() - 1.0


@pytest.mark.parametrize("rule", [FirstAccepted(), MostAccepted(), WeighedCandidates()], ids=["first", "most", "args"])
def test_a_guide_that_selects_is_shown_what_is_allowed(rule: SelectingRule) -> None:
    guide = Picky(rule)
    answers = list(Decoder(MODEL, {"picky": guide}).generate(["a"] * 8, constraint=CONSTRAINT, trace=True, seed=3))
    assert {answer.finish_reason for answer in answers} == {"eos"}
    assert all(re.fullmatch(PATTERN, answer.text) for answer in answers)
    assert MODEL.tokenizer is not None
    never = MODEL.tokenizer.encode("efg")
    assert guide.asked
    assert not guide.asked & set(never)
    free = Picky(rule)
    list(Decoder(MODEL, {"picky": free}).generate(["a"] * 8, max_new_tokens=8, ignore_eos=True, seed=3))
    assert free.asked & set(never), "without the constraint it is asked about them"


def test_the_best_of_n_keeps_the_form() -> None:
    policy = BestOfN(Decoder(MODEL), lambda prompts, texts: [float(len(text)) for text in texts])
    (answer,) = policy.answer(["a"], 6, SamplingParams(constraint=CONSTRAINT), [1])
    assert re.fullmatch(PATTERN, answer.text)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (SegmentRejection(Decoder(MODEL), lambda prompts, texts: [0.0] * len(texts), target=0.0), "grow by segments"),
        (Rewriting(Decoder(MODEL), Decoder(MODEL)), "answers twice"),
    ],
)
def test_a_method_that_answers_in_pieces_refuses(policy: Policy, why: str) -> None:
    with pytest.raises(OptionError, match=why):
        list(policy.answer(["a"], 1.0, SamplingParams(constraint=CONSTRAINT), [1]))


@pytest.mark.parametrize(
    "how", [{"min_tokens": 2}, {"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"stop_token_ids": (3,)}], ids=str
)
def test_a_method_of_segments_refuses_what_counts_tokens_of_a_whole_answer(how: dict[str, Any]) -> None:
    (name,) = how
    segments = SegmentRejection(Decoder(MODEL), lambda prompts, texts: [0.0] * len(texts), target=0.0)
    with pytest.raises(OptionError, match=f"{name} speaks of an answer as a whole"):
        list(segments.answer(["a"], 1.0, SamplingParams(**how), [1]))


def test_plausibility_is_measured_from_the_best_allowed_token() -> None:
    """Else a mask of the base's own best tokens would leave none that is allowed."""
    answers = list(Decoder(MODEL).generate(["a"] * 6, constraint=CONSTRAINT, plausibility=0.9, seed=1))
    assert all(re.fullmatch(PATTERN, answer.text) for answer in answers)
