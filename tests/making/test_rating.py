"""A reward that tells no answers apart is refused with what it gave."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trimtab.errors import ModelError
from trimtab.making.rating import Rewards, check_differ
from trimtab.making.sampling import Samples
from trimtab.making.settings import BASE


def samples(*answers: Sequence[str]) -> list[Samples]:
    return [Samples(f"p{number}", {BASE: tuple(texts)}) for number, texts in enumerate(answers)]


TWO = samples(("one", "two"), ("three", "four"))


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], r"1 for each of 4 answers to 2 prompts"),
        ([[1.0, 1.0], [2.5, 2.5]], r"the same for all answers to a prompt, .*1 to 2\.5.* 4 answers to 2 prompts"),
        ([[1.0, None], [1.0, 1.0]], r"1 for each of 3 answers to 2 prompts"),
        ([[1.0, 1.0], [2.0, None]], r"the same for all answers to a prompt, .*1 to 2.* 3 answers to 2 prompts"),
    ],
)
def test_what_prefers_no_answer_says_its_values_and_how_to_go_on(rewards: list[Rewards], wanted: str) -> None:
    with pytest.raises(ModelError, match=wanted) as caught:
        check_differ(TWO, rewards)
    kept, _, anew = str(caught.value).partition("--overwrite")
    assert "--reward" in kept
    assert "--resume" in kept
    assert "prompts" in anew


@pytest.mark.parametrize("rewards", [[[1.0, 2.0], [2.0, 2.0]], [[1.0, None], [2.0, None]]])
def test_what_may_prefer_an_answer_is_let_through(rewards: list[Rewards]) -> None:
    check_differ(TWO, rewards)


def test_the_same_text_again_is_no_answer_to_tell_apart() -> None:
    check_differ(samples(("one", "one"), ("two", "two")), [[1.0, 1.0], [2.0, 2.0]])
