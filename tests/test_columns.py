"""Columns of other people's data: used, known to be about the row, or refused by name; never dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli.prompts import read_prompts
from trimtab.columns import ColumnError, check_columns, in_context, is_answer, is_metadata, question_of
from trimtab.core import Chat
from trimtab.errors import DataError
from trimtab.training.pairs.data import fingerprint, read_pairs
from trimtab.training.pairs.formats import PreferencePair

USER = {"role": "user", "content": "Which way?"}
LEFT, RIGHT = {"role": "assistant", "content": "Left."}, {"role": "assistant", "content": "Right."}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXTS = {"chosen": "Left.", "rejected": "Right."}
MESSAGES = {"chosen": [LEFT], "rejected": [RIGHT]}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def _written(tmp_path: Path, row: Any) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return str(path)


def _pair(tmp_path: Path, row: Any, **how: Any) -> PreferencePair:
    (pair,) = read_pairs([_written(tmp_path, row)], **how).pairs
    return pair


USED: dict[str, tuple[dict[str, Any], Any]] = {
    "question": ({"question": "Which way?"}, (USER,)),
    "instruction": ({"instruction": "Which way?"}, (USER,)),
    "input, with nothing in system": ({"system": "", "input": "Which way?"}, (USER,)),
    "system and question": ({"system": "Be brief.", "question": "Which way?"}, (SYSTEM, USER)),
    "system and prompt": ({"system": "Be brief.", "prompt": "Which way?"}, (SYSTEM, USER)),
    "system_prompt": ({"system_prompt": "Be brief.", "prompt": "Which way?"}, (SYSTEM, USER)),
    "system before messages": ({"system": "Be brief.", "prompt": [USER]}, (SYSTEM, USER)),
    "system twice": ({"system": "Be brief. ", "prompt": [SYSTEM, USER]}, (SYSTEM, USER)),
    "a question that is the prompt": ({"question": "Which way?", "prompt": [USER]}, (USER,)),
    "tools": ({"prompt": [USER], "tools": TOOLS}, Chat([USER], {"tools": TOOLS})),
    "tools as JSON": ({"prompt": "Which way?", "tools": json.dumps(TOOLS)}, Chat([USER], {"tools": TOOLS})),
    "no tools": ({"prompt": [USER], "tools": []}, (USER,)),
    "options": (
        {"prompt": [USER], "chat_template_kwargs": {"enable_thinking": False}},
        Chat([USER], {"enable_thinking": False}),
    ),
}


@pytest.mark.parametrize("what", USED)
def test_what_stands_beside_a_prompt_is_read_in_pairs_and_prompts_alike(what: str, tmp_path: Path) -> None:
    columns, want = USED[what]
    texts = {**columns, **(MESSAGES if isinstance(columns.get("prompt"), list) else TEXTS)}
    assert _pair(tmp_path, texts) == PreferencePair(want, "Left.", "Right.")
    (row,) = read_prompts(_written(tmp_path, columns), ())
    assert (tuple(row.prompt), getattr(row.prompt, "options", {})) == (tuple(want), getattr(want, "options", {}))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another question": ({"prompt": "Which way?", "question": "Who are you?"}, "has `question` beside `prompt`"),
    "two questions": (
        {"question": "Which way?", "instruction": "Be brief."},
        "`question` and `instruction`, which say",
    ),
    "alpaca": ({"instruction": "Translate.", "input": "Way?"}, "`instruction` and `input`, which say different"),
    "a question of messages": ({"question": [USER]}, "a `question` that is not text"),
    "two system messages": ({"system": "Be long.", "prompt": [SYSTEM, USER]}, "a `system` that differs"),
    "a system that is a list": ({"system": ["Be brief."], "prompt": "Which way?"}, "a `system` that is not one text"),
    "tools in words": ({"prompt": "Which way?", "tools": "look"}, "a `tools` that is no JSON"),
    "tools in an object": ({"prompt": "Which way?", "tools": {"a": 1}}, "a `tools` that is"),
    "options in a list": ({"prompt": "Which way?", "chat_template_kwargs": [1]}, "a `chat_template_kwargs` that is"),
    **{
        name: ({"prompt": "Which way?", name: value}, f"has the column '{name}'")
        for name, value in (
            ("context", "We are lost."),
            ("history", [["a", "b"]]),
            ("documents", [{"text": "x"}]),
            ("functions", [{"name": "f"}]),
            ("images", ["x.png"]),
            ("persona", "a pirate"),
            ("prefix", "Well,"),
            ("sytem", "Be brief."),
            ("messages", [USER, RIGHT, USER]),
            ("anything", {"a": 1}),
        )
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_lost_is_refused_by_name(what: str, tmp_path: Path) -> None:
    columns, problem = REFUSED[what]
    messages = isinstance(columns.get("prompt"), list)
    with pytest.raises(DataError, match="line 1: ") as caught:
        _pair(tmp_path, {**columns, **(MESSAGES if messages else TEXTS)})
    assert problem in str(caught.value)
    with pytest.raises(DataError, match="line 1: ") as caught:
        read_prompts(_written(tmp_path, columns), ())
    assert problem in str(caught.value) or "Did you mean 'system'" in str(caught.value)


def test_a_column_is_left_out_when_told_so(tmp_path: Path) -> None:
    row = {"prompt": "Which way?", "context": "We are lost.", "system": "Be brief."}
    how: dict[str, Any] = {"ignore_columns": ["context", "system"]}
    assert _pair(tmp_path, {**row, **TEXTS}, **how) == PreferencePair("Which way?", "Left.", "Right.")
    (read,) = read_prompts(_written(tmp_path, row), (), **how)
    assert read.prompt == "Which way?"
    with pytest.raises(DataError, match=r"--ignore-column context\)"):
        read_prompts(_written(tmp_path, row), ())
    with pytest.raises(DataError, match="list context under the prompts' ignore_columns") as caught:
        read_prompts(_written(tmp_path, row), (), skip_bad_lines=None)
    assert "--" not in str(caught.value), "a recipe has no flags"


@pytest.mark.parametrize(
    "name",
    [
        *("id", "prompt_id", "source", "prompt_source", "score_chosen", "chosen-rating", "chosenModel", "language"),
        *("created_at", "margin", "category", "response_0_harm_category", "is_response_0_safe", "sha256"),
        *("conversation_hash", "messages_metadata"),
    ],
)
def test_what_is_about_a_row_is_passed_over(name: str) -> None:
    assert is_metadata(name)
    check_columns({name: "some text"}, ())


@pytest.mark.parametrize("name", ["answer", "solution", "reference_answer", "correct_answers", "original_chosen"])
def test_other_answers_are_no_part_of_a_prompt(name: str) -> None:
    assert is_answer(name)
    check_columns({name: "some text"}, ())


@pytest.mark.parametrize(
    "name", ["system", "question", "context", "tools", "prompt", "messages", "history", "identity"]
)
def test_what_may_be_read_is_not_taken_for_metadata(name: str) -> None:
    assert not is_metadata(name)
    assert not is_answer(name)
    with pytest.raises(ColumnError, match=name):
        check_columns({name: "some text"}, ())
    check_columns(dict.fromkeys((name, f"{name}2"), None) | {f"{name}3": 4.0}, ())


def test_a_prompt_of_token_ids_has_no_context() -> None:
    assert in_context({"system": None}, [3, 4]) == [3, 4]
    with pytest.raises(ColumnError, match="beside a prompt of token ids"):
        in_context({"system": "Be brief."}, [3, 4])
    assert question_of({"question": " ", "query": None}) is None


REPEATED: dict[str, tuple[dict[str, Any], PreferencePair]] = {
    "in both": (
        {"prompt": "Q: way?\nA:", "chosen": "Q: way?\nA: Left.", "rejected": "Q: way?\nA: Right."},
        PreferencePair("Q: way?\nA:", " Left.", " Right."),
    ),
    "with a space at the end": (
        {"prompt": "Q: way?\nA: ", "chosen": "Q: way?\nA: Left.", "rejected": "Q: way?\nA: Right."},
        PreferencePair("Q: way?\nA: ", "Left.", "Right."),
    ),
    "without its first lines": (
        {
            "prompt": "\n\nHuman: way?\n\nAssistant:",
            "chosen": "Human: way?\n\nAssistant: a",
            "rejected": "Human: way?\n\nAssistant: b",
        },
        PreferencePair("\n\nHuman: way?\n\nAssistant:", " a", " b"),
    ),
    "in transcripts": (
        {
            "prompt": "Which way?",
            "chosen": "\n\nHuman: Which way?\n\nAssistant: Left.",
            "rejected": "\n\nHuman: Which way?\n\nAssistant: Right.",
        },
        PreferencePair((USER,), "Left.", "Right."),
    ),
    "in messages": (
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, LEFT], "rejected": [SYSTEM, USER, RIGHT]},
        PreferencePair((SYSTEM, USER), "Left.", "Right."),
    ),
    "of UltraFeedback, with messages": (
        {"prompt": "Which way?", "chosen": [USER, LEFT], "rejected": [USER, RIGHT], "messages": [USER, LEFT]},
        PreferencePair((USER,), "Left.", "Right."),
    ),
}


@pytest.mark.parametrize("what", REPEATED)
def test_a_prompt_that_answers_repeat_is_read_once(what: str, tmp_path: Path) -> None:
    row, want = REPEATED[what]
    assert _pair(tmp_path, row) == want


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Which way is it?", "chosen": "Which way is it? Left.", "rejected": "Right."}, "`chosen` repeats"),
        (
            {"prompt": "Which way is it?", "chosen": "<u>Which way is it?<a>x", "rejected": "<u>Which way is it?<a>y"},
            "both hold the prompt",
        ),
        (
            {"prompt": [USER], "chosen": [USER, LEFT], "rejected": [RIGHT]},
            "ends in user, assistant where one message",
        ),
        ({"prompt": "Where?", "chosen": [USER, LEFT], "rejected": [USER, RIGHT]}, "`prompt` is not in the turns"),
    ],
)
def test_a_prompt_that_is_repeated_otherwise_is_refused(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        _pair(tmp_path, row)


def test_answers_that_share_a_word_with_a_short_prompt_stay(tmp_path: Path) -> None:
    assert _pair(tmp_path, {"prompt": "No", "chosen": "No way.", "rejected": "Yes."}).chosen == "No way."


def test_keys_of_messages_are_kept_for_the_template(tmp_path: Path) -> None:
    asked = {**USER, "name": "Ann", "id": "7", "created_at": "today", "weight": None}
    thought = {**LEFT, "reasoning_content": "hmm"}
    pair = _pair(tmp_path, {"prompt": [asked], "chosen": [thought], "rejected": [RIGHT]})
    assert pair == PreferencePair(({**USER, "name": "Ann"},), "Left.", "Right.", {"reasoning_content": "hmm"})
    assert pair.answers == (thought, RIGHT)
    (row,) = read_prompts(_written(tmp_path, {"prompt": [asked, {**thought, "id": 1}]}), ())
    assert row.prompt == [{**USER, "name": "Ann"}, thought]


def test_options_for_all_rows_give_way_to_a_rows_own(tmp_path: Path) -> None:
    row = {"prompt": [USER], **MESSAGES, "chat_template_kwargs": {"effort": "low"}}
    pair = _pair(tmp_path, row, template_options={"effort": "high", "enable_thinking": False})
    assert pair.prompt == Chat([USER], {"effort": "low", "enable_thinking": False})
    with pytest.raises(DataError, match="'effort' is for a chat template, and this prompt goes through none"):
        _pair(tmp_path, {"prompt": "Which way?", **TEXTS}, template_options={"effort": "high"})


def test_options_tell_one_set_of_pairs_from_another() -> None:
    plain, told = (PreferencePair(Chat([USER], options), "a", "b") for options in ({}, {"effort": "low"}))
    thought = PreferencePair((USER,), "a", "b", {"thinking": "hmm"})
    found = {fingerprint([pair]) for pair in (plain, told, thought)}
    assert len(found) == 3
    assert fingerprint([plain]) == fingerprint([PreferencePair((USER,), "a", "b")])


def test_an_answer_of_a_chat_may_say_the_question_again(tmp_path: Path) -> None:
    row = {"question": "Which way is it?", "chosen": "Which way is it? Left.", "rejected": "Right."}
    assert _pair(tmp_path, row).chosen == "Which way is it? Left."


PUBLISHED: dict[str, dict[str, Any]] = {
    "UltraFeedback, binarised": {
        "prompt": "Which way?",
        "prompt_id": "9",
        "chosen": [USER, LEFT],
        "rejected": [USER, RIGHT],
        "messages": [USER, LEFT],
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    },
    "pairs of Orca": {"system": "", "question": "Which way?", **TEXTS},
    "pairs of Orca, distilled": {
        "system": "Be brief.",
        "input": "Which way?",
        **TEXTS,
        "generations": ["Left.", "Right."],
        "order": ["a"],
        "labelling_model": "m",
        "raw_labelling_response": "9",
        "rating": [9.0, 8.0],
        "rationale": "Why not.",
        "status": "swapped",
        "original_chosen": "Left.",
        "original_rejected": "Right.",
        "in_gsm8k_train": False,
    },
    "Tulu": {"id": "a", "source": "b", "prompt": "Which way?", "chosen": [USER, LEFT], "rejected": [USER, RIGHT]},
    "mixed, with the question twice": {
        "source": "a",
        "prompt": "Which way?",
        "question": "Which way?",
        "chosen": [USER, LEFT],
        "rejected": [USER, RIGHT],
    },
    "with the models' names": {
        "prompt": "Which way?",
        "chosen": [USER, LEFT],
        "rejected": [USER, RIGHT],
        "chosen-model": "a",
        "rejected-model": "b",
        "chosen-rating": 4.0,
        "rejected-rating": 3.5,
        "source": "c",
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    pair = _pair(tmp_path, PUBLISHED[name])
    assert (pair.prompt[-1], pair.chosen, pair.rejected) == (USER, "Left.", "Right.")
