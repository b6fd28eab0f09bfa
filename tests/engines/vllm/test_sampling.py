"""Sampled answers come from the mixed policy, and speculation changes none that is greedy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import stats

from tests.engines.vllm import house as houses
from trimtab import Decoder, SamplingParams, load_guide, load_model

pytest.importorskip("vllm")

NUM_SAMPLES = {"v1": 3000, "v2": 400}
"""Samples of one token at each weight; interpreted kernels take their time."""
FALSE_ALARMS = 1e-6
"""How often a right sampler would fail a test here, at most: the level of each chi-squared test."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return houses.build(tmp_path_factory.mktemp("house"))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_samples_are_of_the_mixed_policy(house: Path, tmp_path: Path, version: str) -> None:
    """One token, at two weights that share a batch: counts against the built-in engine's probabilities."""
    prompt, weights = [7, 8, 9], (1.0, 0.2)
    requests = [
        {
            "ids": prompt,
            "weights": {"near": weight},
            "params": {"temperature": 1.0, "max_tokens": 1, "seed": index},
        }
        for index in range(NUM_SAMPLES[version])
        for weight in weights
    ]
    out = houses.served(house, {"near": "near"}, tmp_path / "served")
    found = houses.run(version, tmp_path, out, [requests], max_num_seqs=64)["waves"][0]
    for place, weight in enumerate(weights):
        tokens = [answer["ids"][0] for answer in found[place::2]]
        assert distance(tokens, probabilities(house, prompt, weight)) > FALSE_ALARMS
        assert distance(tokens, probabilities(house, prompt, weights[1 - place])) < FALSE_ALARMS  # it can fail


def probabilities(house: Path, prompt: list[int], weight: float) -> list[float]:
    """[V]: the mixed policy of the first token, by forcing every token once."""
    model = load_model(house / "base")
    decoder = Decoder(model, {"near": load_guide(house / "near", model=model)})
    asked = [
        (prompt, SamplingParams(weights={"near": weight}, forced=(token,), max_new_tokens=1, trace=True))
        for token in range(model.vocab_size)
    ]
    return [math.exp(answer.trace[0].chosen.mixed_logprob) for answer in decoder.answers(asked) if answer.trace]


def distance(tokens: list[int], policy: list[float]) -> float:
    """The p-value of a chi-squared test; tokens that fewer than 5 samples are expected of count as one."""
    rare = [token for token, chance in enumerate(policy) if chance * len(tokens) < 5]
    common = [token for token in range(len(policy)) if token not in rare]
    seen = [tokens.count(token) for token in common]
    wanted = [policy[token] * len(tokens) for token in common]
    left = len(tokens) - sum(wanted)
    if left > 1e-9:
        seen.append(len(tokens) - sum(seen))
        wanted.append(left)
    total = sum(wanted)
    return float(stats.chisquare(seen, [value * sum(seen) / total for value in wanted]).pvalue)


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_speculation_changes_no_greedy_answer(house: Path, tmp_path: Path, method: str) -> None:
    guides = {"near": "near", "other": "other"}
    requests = [
        {
            "ids": (ids * 8)[:40],  # repetitive, so that drafts are accepted
            "weights": {"near": (0.0, 0.5, 1.0, 1.5)[index % 4], "other": 0.3 * (index % 3)},
            "params": {"max_tokens": 24, "logprobs": 1},
        }
        for index, ids in enumerate(houses.prompts(12))
    ]
    drafts = {
        "ngram": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1},
        "draft_model": {"model": str(house / "base"), "num_speculative_tokens": 3},
    }
    out = houses.served(house, guides, tmp_path / "served")
    found = houses.run("v2", tmp_path, out, [requests], speculative_config=drafts[method])
    assert found["metrics"]["vllm:spec_decode_num_accepted_tokens"] > 0
    wrong, gap = houses.differences(found["waves"][0], houses.expected(house, guides, requests))
    assert wrong == 0
    assert gap < 1e-3
