"""Prompts in three parts: none is in two of them, and none is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core import Chat
from trimtab.errors import DataError
from trimtab.making.splits import MOST, split

PROMPTS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=12, max_size=60)


@given(prompts=PROMPTS, seed=st.integers(0, 5))
def test_the_parts_are_all_different_prompts_and_no_prompt_is_in_two(prompts: list[str], seed: int) -> None:
    different = set(prompts)
    if len(different) // 5 < 1:
        return
    parts = split(prompts, seed=seed)
    everything = [*parts.train, *parts.validation, *parts.test]
    assert sorted(everything) == sorted(different)
    assert len(parts.validation) == len(parts.test) == min(MOST, len(different) // 5)
    assert split(prompts, seed=seed) == parts


def test_prompts_to_report_on_may_be_given_apart_and_are_nowhere_else() -> None:
    prompts = [f"p{number}" for number in range(30)]
    parts = split(prompts, test=["p3", "other", "p3"], num_validation=5, num_train=10)
    assert parts.test == ("p3", "other")
    assert "p3" not in (*parts.train, *parts.validation)
    assert (len(parts.validation), len(parts.train)) == (5, 10)
    assert split(prompts, test=["p3", "other"], num_test=1).test == ("p3",)


def test_another_seed_draws_others() -> None:
    prompts = [f"p{number}" for number in range(100)]
    assert split(prompts, seed=1).test != split(prompts, seed=2).test


@pytest.mark.parametrize("numbers", [{"num_validation": 6, "num_test": 3}, {"num_validation": 1, "num_test": 8}])
def test_too_few_prompts_are_refused_with_the_numbers(numbers: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"10 different prompts are too few: .* would leave 1") as caught:
        split([f"p{number}" for number in range(10)], **numbers)
    assert "num_validation" in str(caught.value)


def test_four_prompts_have_no_fifth() -> None:
    with pytest.raises(DataError, match="4 different prompts are too few: 0 to validate"):
        split(list("abcd"))


def test_what_a_prompt_says_to_its_template_is_written_too() -> None:
    chat = Chat([{"role": "user", "content": "q"}], {"enable_thinking": False, "tools": [{"name": "f"}]})
    parts = split([chat, *"abcdefghi"], num_validation=1, num_test=1)
    rows = [json.loads(line) for text in parts.texts().values() for line in text.splitlines()]
    (row,) = [row for row in rows if not isinstance(row["prompt"], str)]
    assert row == {
        "prompt": [{"role": "user", "content": "q"}],
        "tools": [{"name": "f"}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
