"""Penalties, biases and least lengths against their formula: the whole distribution of a token, and its KL, to 1e-6."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from trimtab.core import Guide, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import DeadEndError, OptionError
from trimtab.guides.arm import ARM
from trimtab.models.tabular import TabularModel

V = 7
PROMPT = (1, 3, 3)
WEIGHT = 0.7
BASE = TabularModel.random(V, seed=20, order=2, eos_ids=(6,))
EXPERT = TabularModel.random(V, seed=21, eos_ids=(6,))
GUIDES: dict[str, Guide] = {"expert": ARM(EXPERT)}

CASES: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 1.3},
    "a negative presence penalty": {"presence_penalty": -0.9},
    "frequency": {"frequency_penalty": 0.8},
    "a negative frequency penalty": {"frequency_penalty": -1.7},
    "bias": {"logit_bias": {0: 2.5, 4: -3.0}},
    "a ban and a favourite": {"logit_bias": {2: -100, 5: 100}},
    "at least some tokens": {"min_tokens": 4},
    "at least some, none of them a stop": {"min_tokens": 9, "stop_token_ids": (1, 3)},
    "at least none": {"min_tokens": 0, "stop_token_ids": (1,)},
    "all of them": {
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {3: 1.0, 6: 4.0},
        "min_tokens": 3,
        "temperature": 1.7,
    },
}
ANSWERS = [(), (2,), (2, 4, 2), (0, 0, 0, 5)]


def formula(answer: Sequence[int], how: dict[str, Any]) -> list[float]:
    """The probability of each next token, written from the definitions alone."""
    base = BASE.next_logprobs((*PROMPT, *answer)).double()
    expert = EXPERT.next_logprobs((*PROMPT, *answer)).double()
    counts = Counter(answer)
    logits = []
    for token in range(V):
        logit = float(base[token]) + WEIGHT * float(expert[token])
        if token in (*PROMPT, *answer):
            logit -= math.log(how.get("repetition_penalty", 1.0))
        logit -= how.get("presence_penalty", 0.0) * (counts[token] > 0)
        logit -= how.get("frequency_penalty", 0.0) * counts[token]
        logit += how.get("logit_bias", {}).get(token, 0.0)
        if len(answer) < how.get("min_tokens", 0) and token in (6, *how.get("stop_token_ids", ())):
            logit = -math.inf
        logits.append(logit / how.get("temperature", 1.0))
    top = max(logits)
    masses = [math.exp(logit - top) for logit in logits]
    return [mass / math.fsum(masses) for mass in masses]


def measured(answer: Sequence[int], how: dict[str, Any]) -> tuple[list[float], float]:
    """The same of the decoder, each next token forced once; and the step's KL."""
    asked = [
        (
            PROMPT,
            SamplingParams(
                **how,
                weights={"expert": WEIGHT},
                forced=(*answer, token),
                max_new_tokens=max(len(answer) + 1, how.get("min_tokens", 0)),
                seed=0,
                trace=True,
            ),
        )
        for token in range(V)
    ]
    steps = [found.trace[len(answer)] for found in Decoder(BASE, GUIDES).answers(asked) if found.trace is not None]
    (kl, *others) = [step.kl for step in steps]
    assert all(other == pytest.approx(kl, abs=1e-6) for other in others)
    return [math.exp(step.sampled_logprob) for step in steps], kl


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_the_distribution_is_the_formula_and_counts_in_the_kl(name: str, answer: tuple[int, ...]) -> None:
    found, kl = measured(answer, CASES[name])
    wanted = formula(answer, CASES[name])
    assert found == pytest.approx(wanted, abs=1e-6)
    base = BASE.next_logprobs((*PROMPT, *answer)).double()
    divergence = sum(p * (math.log(p) - float(base[token])) for token, p in enumerate(wanted) if p)
    assert kl == pytest.approx(divergence, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name != "at least none"])
def test_each_case_is_another_distribution_than_none(name: str) -> None:
    """Or the test above would show little."""
    assert any(formula(answer, CASES[name]) != pytest.approx(formula(answer, {}), abs=1e-2) for answer in ANSWERS)


def answered(**how: Any) -> tuple[tuple[int, ...], str, str]:
    [answer] = Decoder(BASE).generate([PROMPT], **{"max_new_tokens": 12, "seed": 5, **how})
    return answer.token_ids, answer.text, answer.finish_reason


def test_a_stop_token_ends_the_answer_and_adds_no_text() -> None:
    tokens, text, _ = answered(ignore_eos=True)
    stop = next(token for token in tokens if token not in tokens[:2])
    cut = tokens[: tokens.index(stop) + 1]
    assert answered(ignore_eos=True, stop_token_ids=(stop,)) == (cut, text[: len(cut) - 1], "stop")


def test_an_ignored_end_ends_where_it_is_a_stop_token() -> None:
    biased = {"logit_bias": {6: 100}, "ignore_eos": True}
    assert answered(**biased) == ((6,) * 12, "", "length")
    assert answered(**biased, stop_token_ids=[6])[0::2] == ((6,), "stop")


@pytest.mark.parametrize("least", [1, 3, 11])
def test_an_answer_has_at_least_so_many_tokens_before_its_end(least: int) -> None:
    favoured = {"logit_bias": {6: 100}}
    assert answered(**favoured)[0] == (6,)
    tokens, _, reason = answered(**favoured, min_tokens=least)
    assert (len(tokens), tokens.count(6), tokens[-1], reason) == (least + 1, 1, 6, "eos")


def test_a_stop_string_counts_from_the_first_token_that_may_be_the_last() -> None:
    plain = {"logit_bias": {6: -100}}  # so that each token is a character
    _, text, _ = answered(**plain)
    assert len(text) == 12
    for first in range(len(text) - 2):
        string = text[first : first + 2]
        for least in range(12):
            # The earliest occurrence whose last character is of a token after the first `least`.
            ends = [at for at in range(len(text) - 1) if text[at : at + 2] == string and at + 2 > least]
            wanted = text[: ends[0]] if ends else text
            assert answered(**plain, stop=string, min_tokens=least)[1] == wanted, (string, least)


def test_what_leaves_nothing_ends_the_answer_with_its_reason() -> None:
    only = TabularModel(lambda prefix: torch.zeros(2), 2, eos_ids=(0, 1))
    [answer] = Decoder(only).generate([[0]], min_tokens=1, max_new_tokens=2)
    assert isinstance(answer.error, DeadEndError)
    assert "min_tokens" in str(answer.error)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5; give a number of at least -2 and at most 2"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3"),
        ({"logit_bias": {0: 101}}, "logit_bias is"),
        ({"logit_bias": {-1: 1}}, "logit_bias is"),
        ({"logit_bias": {"0": 1}}, "logit_bias is"),
        ({"logit_bias": [(0, 1)]}, "logit_bias is"),
        ({"logit_bias": {V: 1}}, f"logit_bias names token {V}, which is not an id.*give 0 to {V - 1}"),
        ({"stop_token_ids": (V,)}, f"stop_token_ids names token {V}"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids is"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 13}, "min_tokens is 13, and max_new_tokens 12"),
    ],
)
def test_what_cannot_be_honoured_is_named(how: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        answered(**how)
