"""Columns of other people's data: what becomes of each, so that none is dropped without a word.

A column is used (`system`, `question`, `tools`, `chat_template_kwargs`, and what a format reads), or known to be about
a row and not part of its prompt (where it is from, what somebody thought of it, other answers), or it is refused by
name. Empty ones and numbers are nothing that a model would read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads columns before anything heavy is imported
    from trimtab.core import Message

SYSTEM = ("system", "system_prompt")
QUESTION = ("question", "query", "instruction", "input")
OPTIONS = ("tools", "chat_template_kwargs")
CONTEXT = (*SYSTEM, *QUESTION, *OPTIONS)
"""What may stand beside a prompt, or for it."""

_ABOUT = frozenset(
    (
        *("id", "ids", "uid", "uuid", "idx", "index", "key", "hash", "sha", "md"),
        *("source", "sources", "origin", "dataset", "subset", "split", "fingerprint", "url", "license", "version"),
        *("category", "categories", "topic", "topics", "tag", "tags", "label", "labels", "type", "kind", "domain"),
        *("score", "scores", "rating", "ratings", "rank", "ranks", "ranking", "margin", "reward", "rewards"),
        *("quality", "difficulty", "confidence", "agreement", "preference", "winner", "order", "status", "stats"),
        *("model", "models", "annotator", "annotators", "annotation", "annotations", "worker", "judge", "evaluator"),
        *("language", "lang", "locale", "timestamp", "time", "date", "created", "updated", "meta", "metadata", "info"),
        *("safe", "safety", "severity", "harm", "harmful", "toxicity", "toxic", "redacted", "moderation", "flagged"),
        *("length", "len", "count", "num", "principle", "criterion", "criteria", "rubric"),
    )
)
"""Words in the name of a column that say what is known about a row."""

_ANSWERS = frozenset(
    (
        *("answer", "answers", "response", "responses", "completion", "completions", "output", "outputs"),
        *("solution", "solutions", "reference", "references", "target", "targets", "gold", "truth", "generations"),
        *("chosen", "rejected", "rationale", "explanation", "critique", "critiques", "feedback", "comment", "comments"),
        *("judgement", "judgment", "verdict"),
    )
)
"""Words in the name of a column that holds another answer, or what somebody said of one."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^\W\d_a-zA-Z]+")


class ColumnError(Exception):
    """A column that cannot be used, as the end of a sentence that begins with the row, without its full stop.

    `column` is the one that could be left out; the caller knows how that is said.
    """

    def __init__(self, problem: str, column: str | None = None) -> None:
        super().__init__(problem)
        self.column = column


def is_metadata(name: str) -> bool:
    """Whether a column's name says that it is about the row: `prompt_id`, `score_chosen`, `chosenModel`, `language`."""
    return not _ABOUT.isdisjoint(_words(name))


def is_answer(name: str) -> bool:
    """Whether a column's name says that it holds an answer, or an opinion on one: `reference_answer`, `rationale`."""
    return not _ANSWERS.isdisjoint(_words(name))


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, a text of blanks, an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Collection) and len(value) == 0)


def check_columns(row: Mapping[str, Any], used: Collection[str]) -> None:
    """Raise ColumnError for a column that is not used and may be part of what a model is to read."""
    for name, value in row.items():
        if name in used or is_empty(value) or isinstance(value, bool | int | float):
            continue
        if not (is_metadata(name) or is_answer(name)):
            raise ColumnError(
                f"has the column {name!r}, which nothing here reads, though it may belong to the prompt. Put it into "
                "`prompt`",
                name,
            )


def question_of(row: Mapping[str, Any]) -> str | None:
    """The user's words in a row that calls them `question`, `query`, `instruction` or `input`; None without such.

    Raises ColumnError where they are not text, or several that differ.
    """
    found = {name: row[name] for name in QUESTION if not is_empty(row.get(name))}
    for name, value in found.items():
        if not isinstance(value, str):
            raise ColumnError(f"has a `{name}` that is not text. Give chat messages in `prompt`")
    if len({value.strip() for value in found.values()}) > 1:
        names = " and ".join(f"`{name}`" for name in found)
        raise ColumnError(f"has {names}, which say different things. Put what is to be read into `prompt`")
    return next(iter(found.values()), None)


def check_question(row: Mapping[str, Any], prompt: Any) -> None:
    """Raise ColumnError where a row has a prompt, and a question besides that is not in it."""
    question = question_of(row)
    texts = [prompt] if isinstance(prompt, str) else [item.get("content") for item in prompt if _is_message(item)]
    if question is not None and not any(isinstance(text, str) and question.strip() in text for text in texts):
        name = next(name for name in QUESTION if not is_empty(row.get(name)))
        raise ColumnError(
            f"has `{name}` beside `prompt`, which does not hold it. Put all that is to be read into `prompt`", name
        )


def in_context(row: Mapping[str, Any], prompt: str | Sequence[Any], *, chat: bool = False) -> Any:
    """A row's prompt with its system message, tools and options of the chat template.

    A text with any of these, or with `chat`, is a user's message; without, it stays as it is. Raises ColumnError for
    values of other types, and for a system message that differs from the prompt's own.
    """
    names = [name for name in SYSTEM if name in row]
    said = [text for name in names if not is_empty(text := row[name])]
    options = _options(row)
    messages: Sequence[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if isinstance(prompt, str) and not (chat or names or options):
        return prompt
    if (said or options) and not all(map(_is_message, messages)):
        raise ColumnError(f"has `{names[0] if said else next(iter(options))}` beside a prompt of token ids")
    if said:
        messages = _with_system(said, messages)
    if not options:
        return messages
    from trimtab.core import Chat

    return Chat(messages, options)


def plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what is empty or only about it (an id, a time): role, content, and what a template may read."""
    kept = ("role", "content", "tool_call_id")
    return {
        name: value
        for name, value in message.items()
        if name in kept or not (is_empty(value) or (is_metadata(name) and not isinstance(value, bool)))
    }


def _with_system(said: Sequence[Any], prompt: Sequence[Message]) -> Sequence[Message]:
    if any(not isinstance(text, str) for text in said) or len({text.strip() for text in said}) > 1:
        raise ColumnError("has a `system` that is not one text")
    first = prompt[0]
    if first.get("role") != "system":
        return [{"role": "system", "content": said[0]}, *prompt]
    if str(first.get("content")).strip() != said[0].strip():
        raise ColumnError("has a `system` that differs from the system message of its prompt. Keep one of them")
    return prompt


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says to the chat template; lists and objects may be written as JSON, as data sets store them."""
    found: dict[str, Any] = {}
    for name, kind, what in (
        ("chat_template_kwargs", Mapping, "an object of options"),
        ("tools", Sequence, "a list of tools"),
    ):
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError:
                raise ColumnError(f"has a `{name}` that is no JSON; give {what}") from None
        if is_empty(value):
            continue
        if not isinstance(value, kind) or isinstance(value, str):
            raise ColumnError(f"has a `{name}` that is {str(value)[:40]!r}; give {what}")
        found |= dict(value) if name == "chat_template_kwargs" else {name: list(value)}
    return found


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and "role" in item


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(str(name))}
