"""A sweep over strengths: the same draws at every strength, exact KL, rewards of the right texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from trimtab.core import Prompt
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation.report.frontier import Point, Sweep
from trimtab.guides.arm import ARM
from trimtab.models.tabular import TabularModel
from trimtab.storage.scorers import Scorer

PROMPTS = ["ab", "ba", "aab", "bba", "b", "a"]


def _count_c(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [float(text.count("c")) for text in texts]


SWEEP = Sweep(PROMPTS, Scorer("c", "how many c", _count_c), max_new_tokens=6, seed=3)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Letters a, b, c at random, and a guide that likes c (id 3)."""
    base = TabularModel.of_table(torch.zeros(4, 4), eos_ids=(0,))
    likes_c = TabularModel.of_table(torch.tensor([0.0, 0.0, 0.0, 2.0]).expand(4, 4), eos_ids=(0,))
    return Decoder(base, {"c": ARM(likes_c)})


def _at(decoder: Decoder, weight: float) -> Point:
    return SWEEP.measure(decoder, {"c": weight}, weight)


def test_reward_and_kl_rise_with_the_strength(decoder: Decoder) -> None:
    points = [_at(decoder, weight) for weight in (0.0, 1.0, 3.0)]
    rewards, kls = [point.reward.value for point in points], [point.kl.value for point in points]
    assert rewards == sorted(set(rewards))
    assert kls == sorted(set(kls))
    assert kls[0] == 0.0


def test_kl_is_the_closed_form(decoder: Decoder) -> None:
    point = _at(decoder, 1.0)
    policy = torch.softmax(torch.tensor([0.0, 0.0, 0.0, 2.0]), 0)
    step = float((policy * (policy * 4).log()).sum())
    expected = [step * len(answer.token_ids) for answer in point.answers]
    assert [answer.kl for answer in point.answers] == pytest.approx(expected, rel=1e-5)
    assert point.kl.value == pytest.approx(math.fsum(expected) / len(expected), rel=1e-5)


def test_strength_0_is_the_base(decoder: Decoder) -> None:
    unguided = SWEEP.measure(Decoder(decoder.model), {}, 0.0)
    point = _at(decoder, 0.0)
    assert [answer.token_ids for answer in point.answers] == [answer.token_ids for answer in unguided.answers]
    gain = point.gain(unguided)
    assert (gain.low, gain.value, gain.high) == (0.0, 0.0, 0.0)


def test_each_prompt_keeps_its_seed(decoder: Decoder) -> None:
    assert [answer.seed for answer in _at(decoder, 2.0).answers] == [3, 4, 5, 6, 7, 8]


def test_rewards_belong_to_their_answers(decoder: Decoder) -> None:
    point = _at(decoder, 1.0)
    assert list(point.rewards) == [answer.text.count("c") for answer in point.answers]
    assert len(set(point.rewards)) > 1


def test_speed_counts_every_token(decoder: Decoder) -> None:
    point = _at(decoder, 1.0)
    assert point.num_tokens == sum(len(answer.token_ids) for answer in point.answers)
    assert point.tokens_per_s == pytest.approx(point.num_tokens / point.seconds)


def test_progress_is_told_of_each_answer(decoder: Decoder) -> None:
    told: list[None] = []
    SWEEP.measure(decoder, {"c": 1.0}, 1.0, lambda: told.append(None))
    assert len(told) == len(PROMPTS)


def test_the_notes_name_what_was_used() -> None:
    notes = " ".join(SWEEP.notes().values())
    assert "at most 6 new tokens" in notes
    assert "seed 3 + i" in notes
    assert "how many c" in notes
