"""Prompts to learn from: when text becomes a message, and what tells two lists of prompts apart."""

from __future__ import annotations

import pytest

from trimtab.core import Prompt
from trimtab.errors import DataError, OptionError
from trimtab.training.run.prompt_data import TrainingPrompts

MESSAGE = [{"role": "user", "content": "ab"}]
GIVEN: list[Prompt] = ["ab", [1, 2]]


@pytest.mark.parametrize(
    ("template", "has_chat_template", "first"),
    [("auto", True, MESSAGE), ("chat", True, MESSAGE), ("auto", False, "ab"), ("raw", True, "ab")],
)
def test_text_becomes_a_message_where_it_should(template: str, has_chat_template: bool, first: Prompt) -> None:
    assert TrainingPrompts(GIVEN, template).templated(has_chat_template=has_chat_template) == [first, [1, 2]]


def test_chat_needs_a_template() -> None:
    with pytest.raises(OptionError, match="no chat template"):
        TrainingPrompts(GIVEN, "chat").templated(has_chat_template=False)


def test_what_is_no_list_of_prompts_is_refused() -> None:
    for prompts in ([], "one text"):
        with pytest.raises(DataError, match="no prompt to train on"):
            TrainingPrompts(prompts, "auto").check()
    with pytest.raises(OptionError, match="template is 'talk'"):
        TrainingPrompts(GIVEN, "talk").check()


def test_the_card_tells_prompts_apart_by_content_and_order() -> None:
    card = TrainingPrompts(GIVEN, "auto", files=["p.jsonl"]).card
    assert (card["num_prompts"], card["files"], card["template"]) == (2, ["p.jsonl"], "auto")
    assert card["fingerprint"] == TrainingPrompts(list(GIVEN), "auto").card["fingerprint"]
    assert card["fingerprint"] != TrainingPrompts(GIVEN[::-1], "auto").card["fingerprint"]
