"""Rows of published data sets, one shape after the other. The texts are made up."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.errors import OptionError
from trimtab.training.pairs.formats import PreferencePair, RowError, TieError, convert, detect

USER = {"role": "user", "content": "Which way?"}
LEFT, RIGHT = {"role": "assistant", "content": "Left."}, {"role": "assistant", "content": "Right."}
SYSTEM = {"role": "system", "content": "Be brief."}

MESSAGES = PreferencePair((USER,), "Left.", "Right.")
SHAPES: dict[str, tuple[str, dict[str, Any], PreferencePair]] = {
    "messages": ("preference", {"prompt": [USER], "chosen": [LEFT], "rejected": [RIGHT]}, MESSAGES),
    "messages, implicit prompt": ("preference", {"chosen": [USER, LEFT], "rejected": [USER, RIGHT]}, MESSAGES),
    "messages, several turns": (
        "preference",
        {"prompt": [SYSTEM, USER, LEFT, USER], "chosen": [LEFT], "rejected": [RIGHT]},
        PreferencePair((SYSTEM, USER, LEFT, USER), "Left.", "Right."),
    ),
    "UltraFeedback, binarised": (
        "preference",
        {"prompt": "Which way?", "chosen": [USER, LEFT], "rejected": [USER, RIGHT], "score_chosen": 8.0},
        MESSAGES,
    ),
    "a prompt of text before messages": (
        "preference",
        {"prompt": "Which way?", "chosen": [LEFT], "rejected": [RIGHT]},
        MESSAGES,
    ),
    "text": (
        "preference",
        {"prompt": "Which way?", "chosen": " Left.", "rejected": " Right."},
        PreferencePair("Which way?", " Left.", " Right."),
    ),
    "text, implicit prompt": (
        "preference",
        {"chosen": "Q: way?\nA: Right.", "rejected": "Q: way?\nA: Rightly."},
        PreferencePair("Q: way?\nA:", " Right.", " Rightly."),
    ),
    "text, implicit prompt that ends a line": (
        "preference",
        {"chosen": "Way?\nleft", "rejected": "Way?\nright"},
        PreferencePair("Way?\n", "left", "right"),
    ),
    "HH-RLHF": (
        "hh",
        {
            "chosen": "\n\nHuman: Hello\n\nAssistant: Yes?\n\nHuman: Which way?\n\nAssistant: Left.",
            "rejected": "\n\nHuman: Hello\n\nAssistant: Yes?\n\nHuman: Which way?\n\nAssistant: Right.\n\nNo.",
        },
        PreferencePair(
            ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}, USER),
            "Left.",
            "Right.\n\nNo.",
        ),
    ),
    "PKU-SafeRLHF, helpful": (
        "pku-helpful",
        {"prompt": "Which way?", "response_0": "Right.", "response_1": "Left.", "better_response_id": 1},
        MESSAGES,
    ),
    "PKU-SafeRLHF, safer": (
        "pku-safer",
        {
            "prompt": "Which way?",
            "response_0": "Left.",
            "response_1": "Right.",
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        MESSAGES,
    ),
    "UltraFeedback, scores": (
        "ultrafeedback",
        {
            "instruction": "Which way?",
            "completions": [
                {"response": "Up.", "fine-grained_score": 3.0},
                {"response": "Left.", "fine-grained_score": 4.5},
                {"response": "Right.", "fine-grained_score": 1.0},
            ],
        },
        MESSAGES,
    ),
    "UltraFeedback, overall scores only": (
        "ultrafeedback",
        {
            "instruction": "Which way?",
            "completions": [{"response": "Right.", "overall_score": 2}, {"response": "Left.", "overall_score": 7.5}],
        },
        MESSAGES,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_gives_its_pair(name: str) -> None:
    format_name, row, expected = SHAPES[name]
    assert convert(row, format_name) == expected


@pytest.mark.parametrize("name", [name for name in SHAPES if not name.startswith("PKU")])
def test_each_shape_is_recognised(name: str) -> None:
    format_name, row, _ = SHAPES[name]
    assert detect(row) == format_name


def test_safe_rlhf_asks_which_preference() -> None:
    with pytest.raises(OptionError, match=r"pku-helpful .* or .*pku-safer"):
        detect({"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1})


def test_equal_scores_are_a_tie_and_no_error() -> None:
    completions = [{"response": text, "overall_score": 3} for text in "ab"]
    with pytest.raises(TieError):
        convert({"instruction": "p", "completions": completions}, "ultrafeedback")


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no rejected": ("preference", {"prompt": "p", "chosen": "a"}, "`rejected` is missing"),
    "empty response": ("preference", {"prompt": "p", "chosen": " ", "rejected": "b"}, "chosen response is empty"),
    "the same twice": ("preference", {"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same text"),
    "the same messages twice": (
        "preference",
        {"chosen": [USER, LEFT], "rejected": [USER, LEFT]},
        "are the same text",
    ),
    "nothing shared": ("preference", {"chosen": "left it is", "rejected": "right it is"}, "there is no prompt"),
    "a prompt of messages, text": ("preference", {"prompt": [USER], "chosen": "a", "rejected": "b"}, "not text though"),
    "no role": ("preference", {"prompt": [{"content": "x"}], "chosen": [LEFT], "rejected": [RIGHT]}, "has a role"),
    "content is a number": (
        "preference",
        {"prompt": [USER], "chosen": [{"role": "assistant", "content": 3}], "rejected": [RIGHT]},
        "content of text",
    ),
    "the user answers": (
        "preference",
        {"prompt": [USER], "chosen": [USER], "rejected": [RIGHT]},
        "`chosen` ends in user",
    ),
    "two answers": (
        "preference",
        {"prompt": [USER], "chosen": [LEFT, USER, RIGHT], "rejected": [RIGHT]},
        "ends in assistant, user, assistant",
    ),
    "different dialogues": (
        "hh",
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
        "different dialogues",
    ),
    "no transcript": ("hh", {"chosen": "a b", "rejected": "a c"}, "is not a transcript"),
    "a label of 2": (
        "pku-safer",
        {"prompt": "p", "response_0": "a", "response_1": "b", "safer_response_id": 2},
        "is 2; accepted: 0 or 1",
    ),
    "a label that is true": (
        "pku-safer",
        {"prompt": "p", "response_0": "a", "response_1": "b", "safer_response_id": True},
        "is True; accepted",
    ),
    "no score": (
        "ultrafeedback",
        {"instruction": "p", "completions": [{"response": "a"}, {"response": "b", "overall_score": 1}]},
        "has no score",
    ),
    "one completion": (
        "ultrafeedback",
        {"instruction": "p", "completions": [{"response": "a", "score": 1}]},
        "two or more",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_row_says_what_is_wrong(name: str) -> None:
    format_name, row, problem = BAD[name]
    with pytest.raises(RowError, match=problem):
        convert(row, format_name)


def test_a_row_of_no_known_shape_lists_those_that_are() -> None:
    with pytest.raises(RowError, match=r"has the keys text; accepted: chosen and rejected"):
        detect({"text": "x"})
