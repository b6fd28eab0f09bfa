"""CARDS against a plain loop: one proposal at a time, drawn whole and then cut, entropies from the network itself."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.tiny import tiny_module, tiny_tokenizer
from trimtab.answers import Answer
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import ModelError
from trimtab.methods.cards import until_unsure
from trimtab.methods.catalogue import check_method
from trimtab.methods.method import derived_seed
from trimtab.methods.segments import SegmentRejection
from trimtab.models.hf import HFModel
from trimtab.storage.scorers import Scorer

MODEL = HFModel(tiny_module("llama"), tiny_tokenizer())
PROMPTS: list[Prompt] = ["w3 w4 w5", "w7", "w8 w9"]
SEEDS = [5, 6, 7]
PARAMS = SamplingParams(max_new_tokens=14, ignore_eos=True, trace=True)
WORDS = Scorer("words", "different words", lambda prompts, texts: [float(len(set(text.split()))) for text in texts])
TARGET, START, LEAST, MOST, TRIES, STEEPNESS = 9.0, 0.5, 2, 5, 4, 0.5


def entropies(token_ids: Sequence[int]) -> list[float]:
    """The entropy of the base's next token after each prefix of the ids."""
    with torch.no_grad():
        logprobs = MODEL.module(torch.tensor([list(token_ids)])).logits[0].double().log_softmax(-1)
    return (-(logprobs.exp() * logprobs).sum(-1)).tolist()


THRESHOLD = sorted(entropies([3, 4, 5, 6, 7, 8]))[3]
"""Some positions are above it, some below."""


def plain_loop(prompt: Prompt, seed: int) -> tuple[list[int], list[int]]:
    """The answer's tokens and the lengths of its segments, by the definition."""
    ids = MODEL.tokenizer.encode(str(prompt)) if MODEL.tokenizer else []
    first = (1 - START) * WORDS([prompt], [""])[0] + START * TARGET
    answer: list[int] = []
    lengths: list[int] = []
    while len(answer) < PARAMS.max_new_tokens:
        best: tuple[float, list[int]] | None = None
        for attempt in range(TRIES):
            room = min(MOST, PARAMS.max_new_tokens - len(answer))
            asked = replace(PARAMS, max_new_tokens=room, seed=derived_seed(seed, len(lengths), attempt))
            segment = list(next(Decoder(MODEL).answers([([*ids, *answer], asked)])).token_ids)
            unsure = entropies([*ids, *answer, *segment])[len(ids) + len(answer) - 1 :]
            ends = [n for n in range(LEAST, len(segment)) if unsure[n] >= THRESHOLD]
            segment = segment[: ends[0]] if ends else segment
            reward = WORDS([prompt], [decoded([*answer, *segment])])[0]
            best = max(best or (-math.inf, []), (reward, segment), key=lambda pair: pair[0])
            reached = (len(answer) + len(segment)) / PARAMS.max_new_tokens
            threshold = min(TARGET, first + reached * (TARGET - first))
            luck = random.Random(derived_seed(seed, len(lengths), attempt, 1)).random()
            if luck < math.exp(min(0.0, STEEPNESS * (reward - threshold))):
                break
        else:
            segment = best[1] if best else []
        answer += segment
        lengths.append(len(segment))
    return answer, lengths


def decoded(token_ids: Sequence[int]) -> str:
    assert MODEL.tokenizer is not None
    return MODEL.tokenizer.decode(token_ids)


def cards(entropy: float = THRESHOLD) -> SegmentRejection:
    def draw(engine: Decoder, requests: Sequence[tuple[list[int], SamplingParams]]) -> tuple[list[Answer], int]:
        return until_unsure(engine, requests, entropy=entropy, min_tokens=LEAST)

    return SegmentRejection(
        Decoder(MODEL), WORDS, target=TARGET, start=START, segment_tokens=MOST, max_tries=TRIES, draw=draw
    )


def test_a_batch_makes_the_tokens_of_the_plain_loop() -> None:
    answers = list(cards().answer(PROMPTS, STEEPNESS, PARAMS, SEEDS))
    expected = [plain_loop(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert [list(answer.token_ids) for answer in answers] == [tokens for tokens, _ in expected]
    lengths = {length for _, segments in expected for length in segments}
    assert len(lengths) > 1, "segments are cut at different places, or this shows nothing"
    assert [len(answer.trace or ()) for answer in answers] == [14, 14, 14]


def test_what_was_drawn_and_thrown_away_is_counted() -> None:
    unsure, sure = cards(entropy=0.0), cards(entropy=99.0)
    for policy in (unsure, sure):
        list(policy.answer(["w3"], 0.0, PARAMS, [1]))  # at strength 0 every proposal is accepted
    assert sure.num_tokens_read == 14
    assert unsure.num_tokens_read == 14 + 6  # seven segments of two tokens, each but the last one with a third


def test_an_error_ends_the_proposals_and_leaves_the_engine_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Decoder(MODEL)
    sound = engine.step

    def failing() -> list[object]:
        return [replace(step, error=ModelError("on purpose")) for step in sound()]

    monkeypatch.setattr(engine, "step", failing)
    with pytest.raises(ModelError, match="on purpose"):
        until_unsure(engine, [([3], replace(PARAMS, seed=1)), ([4], replace(PARAMS, seed=2))], entropy=9, min_tokens=1)
    assert (engine.num_running, engine.num_waiting) == (0, 0)


@pytest.mark.parametrize("name", ["start", "entropy", "min_tokens", "target"])
def test_an_option_out_of_range_is_named(name: str) -> None:
    options = {"scorer": "sentiment", "target": 1.0, name: "x" if name == "target" else -1}
    (problem,) = check_method("cards", options, [1.0])
    assert problem.startswith(f"{name} of cards is ")


def test_a_negative_strength_is_refused() -> None:
    (problem,) = check_method("cards", {"scorer": "sentiment", "target": 1.0}, [-1.0])
    assert "give at least 0" in problem
