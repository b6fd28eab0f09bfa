"""A step feeds as many tokens of prompts as take about as long as the step does without them, or a little longer."""

from __future__ import annotations

import pytest

from trimtab.decoding.pacing import LEAST, SHARE, Pace


@pytest.mark.parametrize(
    ("usual", "token", "expected"), [(0.1, 0.002, int(SHARE * 50)), (0.1, 1.0, LEAST), (0.1, 1e-6, 256)]
)
def test_prompts_take_about_as_long_as_the_step_without_them(usual: float, token: float, expected: int) -> None:
    pace = Pace()
    for _ in range(30):
        pace.note(usual, 0)
        num_fed = pace.limit(256)
        pace.note(usual + token * num_fed, num_fed)
    assert pace.limit(256) == pytest.approx(expected, abs=1)
    assert pace.limit(8) == 8


def test_it_follows_a_prompt_that_becomes_dearer() -> None:
    """The longer the prompt, the more each of its tokens looks back at."""
    pace = Pace()
    pace.note(0.1, 0)
    token, gaps = 0.001, []
    for _ in range(40):
        num_fed = pace.limit(256)
        gaps.append(0.1 + token * num_fed)
        pace.note(gaps[-1], num_fed)
        token *= 1.05
    assert max(gaps) < 0.3
    assert sum(gaps[5:]) / len(gaps[5:]) > 0.15  # and it does not dawdle


def test_nothing_known_is_a_careful_step() -> None:
    pace = Pace()
    assert pace.limit(256) == 4 * LEAST
    pace.note(5.0, 100)  # a step of prompts alone says nothing of others' waiting
    assert pace.limit(256) == 4 * LEAST
    pace.note(0.1, 0)
    pace.note(0.05, 100)  # quicker with prompts than without: they cost nothing
    assert pace.limit(256) == 256
