"""The length-controlled win rate against what AlpacaEval's own package gives on the same annotations.

The figures in `THEIRS` came from `alpaca_eval.metrics.glm_winrate.get_length_controlled_winrate` of alpaca-eval 0.6.6
under scikit-learn 1.9.1, run once on the annotations that `_annotations` makes, with `_gamed` in the place of their
`df_gamed.csv`. Their package is not needed here.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.errors import InputError
from trimtab.evaluation.judging.length_control import GamedRow, length_controlled_win_rate

pytest.importorskip("sklearn")

THEIRS = [
    (0, 60, "float", "length_controlled_minimal", 43.01706332840831),
    (1, 100, "hard", "length_controlled_minimal", 38.752882404441834),
    (2, 200, "missing", "length_controlled_minimal", 54.03412947155246),
    (3, 300, "float", "length_controlled_v1", 62.079373800081086),
    (4, 805, "hard", "length_controlled_v1", 74.05513911076277),
    (5, 40, "missing", "length_controlled_v1", 86.19198961782111),
    (0, 60, "float", "length_controlled_noreg", 42.33545340940651),
    (1, 100, "hard", "length_controlled_noreg", 39.018430620506315),
    (2, 200, "missing", "length_controlled_noreg", 54.88237891030151),
    (3, 300, "float", "length_controlled_minimal", 62.24967052326029),
    (4, 805, "hard", "length_controlled_minimal", 74.48102987943341),
    (5, 40, "missing", "length_controlled_minimal", 80.05086588672245),
    (0, 60, "float", "length_controlled_v1", 42.2312684824462),
    (1, 100, "hard", "length_controlled_v1", 39.591033831174094),
    (2, 200, "missing", "length_controlled_v1", 54.016146153161614),
    (3, 300, "float", "length_controlled_noreg", 62.092789423641484),
    (4, 805, "hard", "length_controlled_noreg", 74.08501033647276),
    (5, 40, "missing", "length_controlled_noreg", 86.64159651555077),
]


def _annotations(seed: int, num: int, kind: str) -> tuple[list[float | None], list[int], list[int]]:
    """Preferences, the model's lengths and the baseline's: longer answers are liked better."""
    i = np.arange(num)
    baseline = (900 + 700 * np.sin(i * 1.7 + seed)).astype(int)
    model = (1100 + 800 * np.sin(i * 2.3 + 2 * seed) + 300 * np.cos(i * 0.9)).astype(int)
    z = 1.8 * np.sin(5 * i * i + seed) + (model - baseline) / 900 - 0.5 + 0.4 * seed + 0.8 * np.sin(i * 0.37)
    chance = 1 / (1 + np.exp(-z))
    if kind != "float":
        chance = np.where(chance > 0.6, 1.0, np.where(chance < 0.5, 0.0, 0.5))
    preferences: list[float | None] = [round(float(value), 6) for value in chance]
    if kind == "missing":
        preferences = [None if index % 7 == 3 else value for index, value in enumerate(preferences)]
    return preferences, model.tolist(), baseline.tolist()


def _difficulty(num: int) -> list[float]:
    return [math.sin(k * 0.37) * 2 + 0.5 for k in range(num)]


def _gamed(num: int) -> list[GamedRow]:
    rows = []
    for shift in (-1.0, 1.0):
        for k, difficulty in enumerate(_difficulty(num)):
            delta = shift + 0.3 * math.sin(k)
            rows.append(GamedRow(round(1 / (1 + math.exp(0.8 * delta)), 6), delta, difficulty))
    return rows


@pytest.mark.parametrize(("seed", "num", "kind", "formula", "theirs"), THEIRS)
def test_it_is_what_their_package_gives(seed: int, num: int, kind: str, formula: str, theirs: float) -> None:
    preferences, lengths, baseline_lengths = _annotations(seed, num, kind)
    ours = length_controlled_win_rate(
        preferences,
        lengths,
        baseline_lengths,
        difficulty=None if formula == "length_controlled_minimal" else _difficulty(num),
        gamed=_gamed(num) if formula == "length_controlled_v1" else (),
        num_resamples=2,
    )
    assert 100 * ours.win_rate.value == pytest.approx(theirs, abs=1e-6)
    assert ours.length_coefficient <= 0
    assert ours.num_examples == sum(value is not None for value in preferences)


def test_a_judge_that_only_likes_length_gives_one_half() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.integers(200, 400, size=400)
    model = baseline + rng.integers(-60, 260, size=400)
    preferences = (1 / (1 + np.exp(-(model - baseline) / 60))).tolist()
    raw = float(np.mean(preferences))
    ours = length_controlled_win_rate(preferences, model.tolist(), baseline.tolist(), num_resamples=50)
    assert raw > 0.7
    assert abs(ours.win_rate.value - 0.5) < 0.05
    assert ours.win_rate.low <= ours.win_rate.value <= ours.win_rate.high


def test_equal_lengths_leave_the_win_rate_as_it_is() -> None:
    preferences = [1.0, 1.0, 1.0, 0.0] * 25
    ours = length_controlled_win_rate(preferences, [50] * 100, [50] * 100, num_resamples=20)
    assert ours.win_rate.value == pytest.approx(0.75, abs=0.01)
    assert ours.length_coefficient == 0


def test_a_clean_sweep_is_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    ours = length_controlled_win_rate([1.0] * 40, list(range(40)), [20] * 40, num_resamples=5)
    assert ours.win_rate.value > 0.9
    assert capfd.readouterr().err == ""


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="at least 5 verdicts, got 4"):
        length_controlled_win_rate([1, 0, 1, 1, None], [1] * 5, [2] * 5)
    with pytest.raises(InputError, match=r"There are \[5, 6\]"):
        length_controlled_win_rate([1] * 5, [1] * 5, [2] * 6)
    with pytest.raises(InputError, match="between 0"):
        length_controlled_win_rate([2] * 5, [1] * 5, [2] * 5)
    with pytest.raises(InputError, match="give that too"):
        length_controlled_win_rate([1] * 5, [1] * 5, [2] * 5, gamed=_gamed(5))


def test_answers_of_one_prompt_are_resampled_together() -> None:
    """Ten copies of each example say no more than one: the interval is over prompts."""
    preferences, lengths, baseline = _annotations(0, 60, "float")
    ten = [index for index in range(60) for _ in range(10)]
    copied = [[column[index] for index in ten] for column in (preferences, lengths, baseline)]
    alone = length_controlled_win_rate(preferences, lengths, baseline, num_resamples=200).win_rate
    together = length_controlled_win_rate(*copied, prompts=ten, num_resamples=200).win_rate
    apart = length_controlled_win_rate(*copied, num_resamples=200).win_rate
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.3)
    assert apart.high - apart.low < 0.5 * (together.high - together.low)
