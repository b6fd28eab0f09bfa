"""Sampled answers follow the enumerated distribution: whole sequences, filters and all.

Pearson's chi-square over all answers whose expected count is at least 5, the rest pooled. The seeds are fixed, so a
test passes always or never; if the code is right, one choice of seeds in 10 000 would fail a given test (p < 1e-4).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from scipy.stats import chisquare

from trimtab.core import Guide
from trimtab.decoding.decoder import Decoder
from trimtab.guides.arm import ARM
from trimtab.models.tabular import TabularModel

FALSE_ALARM = 1e-4
NUM_ANSWERS = 2000
MAX_NEW_TOKENS = 3
PROMPT = [1, 3]

BASE = TabularModel.random(4, seed=10)
EXPERT = TabularModel.random(4, seed=11)
OTHER = TabularModel.random(4, seed=12)
GUIDES: dict[str, Guide] = {"expert": ARM(EXPERT), "other": ARM(OTHER, prompt=[2])}


@dataclass(frozen=True)
class Case:
    """How answers are sampled."""

    weights: dict[str, float] = field(default_factory=lambda: {"expert": 0.0, "other": 0.0})
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


CASES = {
    "base": Case(),
    "guided": Case({"expert": 1.0, "other": 0.0}),
    "two guides": Case({"expert": 0.8, "other": -0.6}),
    "hot": Case({"expert": 1.0, "other": 0.5}, temperature=1.7),
    "cold": Case({"expert": 1.0, "other": 0.0}, temperature=0.6),
    "top-k": Case({"expert": 1.0, "other": 0.0}, temperature=1.3, top_k=2),
    "top-p": Case({"expert": 1.0, "other": 0.0}, temperature=1.3, top_p=0.8),
    "min-p": Case({"expert": -0.7, "other": 0.7}, temperature=0.9, min_p=0.3),
    "all of them": Case({"expert": 1.0, "other": 0.0}, 1.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.4),
}


def expected(case: Case) -> TabularModel:
    """The policy as a model of its own, from its definition: mix, penalty, temperature, top-k, top-p, min-p."""

    def policy(prefix: tuple[int, ...]) -> torch.Tensor:
        own_prompt = (2, *prefix[len(PROMPT) :])
        logits = BASE.next_logprobs(prefix).double()
        logits = logits + case.weights["expert"] * EXPERT.next_logprobs(prefix).double()
        logits = logits + case.weights["other"] * OTHER.next_logprobs(own_prompt).double()
        for token in set(prefix):
            logits[token] -= math.log(case.repetition_penalty)
        masses = (logits / case.temperature).softmax(0).tolist()
        ranked = sorted(range(4), key=lambda token: -masses[token])[: case.top_k or None]
        total, reached, nucleus = sum(masses[token] for token in ranked), 0.0, []
        for token in ranked:
            if reached < case.top_p:
                nucleus.append(token)
            reached += masses[token] / total
        kept = [token for token in nucleus if masses[token] >= case.min_p * masses[ranked[0]]]
        return torch.tensor([masses[token] if token in kept else 0.0 for token in range(4)]).log()

    return TabularModel(policy, 4)


def sampled(case: Case) -> Counter[tuple[int, ...]]:
    answers = Decoder(BASE, GUIDES, max_rows=500).generate(
        [PROMPT] * NUM_ANSWERS,
        weights=case.weights,
        temperature=case.temperature,
        top_k=case.top_k,
        top_p=case.top_p,
        min_p=case.min_p,
        repetition_penalty=case.repetition_penalty,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=1000,
    )
    return Counter(answer.token_ids for answer in answers)


def p_value(counts: Counter[tuple[int, ...]], model: TabularModel) -> float:
    """Chi-square of sampled answers against a model's enumerated ones; 0 if an impossible one was sampled."""
    probability = {answer: math.exp(logprob) for answer, logprob in model.answers(PROMPT, MAX_NEW_TOKENS).items()}
    if set(counts) - set(probability):
        return 0.0
    num = counts.total()
    common = [answer for answer, p in probability.items() if p * num >= 5]
    rare = [answer for answer, p in probability.items() if p * num < 5]
    observed = [counts[answer] for answer in common] + [sum(counts[answer] for answer in rare)] * bool(rare)
    wanted = [probability[answer] for answer in common] + [sum(probability[answer] for answer in rare)] * bool(rare)
    return float(chisquare(observed, [num * p / math.fsum(wanted) for p in wanted]).pvalue)


@pytest.mark.parametrize("name", CASES)
def test_frequencies(name: str) -> None:
    counts = sampled(CASES[name])
    assert counts.total() == NUM_ANSWERS
    assert p_value(counts, expected(CASES[name])) > FALSE_ALARM


def test_the_test_tells_neighbouring_distributions_apart() -> None:
    """Each case's sample is refused by every other case's distribution, or the tests above would show little."""
    counts = sampled(CASES["guided"])
    for name, case in CASES.items():
        if name != "guided":
            assert p_value(counts, expected(case)) < 1e-8, name
