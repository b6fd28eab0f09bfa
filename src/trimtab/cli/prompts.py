"""Prompts from a file or the command line, checked line by line before anything is loaded.

`builtin:demo` and `builtin:training` are lists that ship. A `.txt` file holds one prompt a line. Any other file is
JSON lines: `{"prompt": text, chat messages or token ids}` (or `question`), and where a prompt is to have its own,
`"system"`, `"tools"`, `"chat_template_kwargs"`, `"weights": {guide: number}` and `"seed"`. What becomes of other
columns is said in `trimtab.columns`: they are about the row, or refused.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli.options import MAX_SEED
from trimtab.columns import (
    CONTEXT,
    ColumnError,
    check_columns,
    check_question,
    in_context,
    is_answer,
    is_empty,
    is_metadata,
    plain_message,
    question_of,
)
from trimtab.documents import read_json
from trimtab.errors import DataError, OptionError, unknown_name

if TYPE_CHECKING:
    from trimtab.core import Prompt, Tokenizer

log = logging.getLogger(__name__)

SHIPPED = "builtin:"
"""What stands before the name of prompts that ship with trimtab: `builtin:demo`, `builtin:training`."""
_FIELDS = ("prompt", "weights", "seed", *CONTEXT)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt and what is its own about it."""

    prompt: Prompt
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    path: str | None = None
    line: int | None = None
    """1-based; None where the prompt came from the command line."""


def read_prompts(
    path: str,
    guide_names: Iterable[str],
    *,
    skip_bad_lines: bool | None = False,
    ignore_columns: Collection[str] = (),
) -> list[PromptRow]:
    """The prompts of a file (`-`: JSON lines on standard input), as if it had no columns of the names to be ignored.

    Raises DataError with the line number; with `skip_bad_lines`, bad lines are left out with a warning instead. None is
    for a command that has no flag for it.
    """
    names, rows, num_bad = set(guide_names), [], 0
    for line, text in _lines(path):
        try:
            rows.append(_row(path, line, text, names, ignore_columns))
        except (DataError, ColumnError) as problem:
            column = problem.column if isinstance(problem, ColumnError) else None
            error = problem if isinstance(problem, DataError) else DataError(f"{problem}.", path=path, line=line)
            if not skip_bad_lines:
                raise DataError(f"{error} {_way_out(column, has_flags=skip_bad_lines is not None)}") from error
            log.warning("left out: %s", error)
            num_bad += 1
    if not rows:
        raise DataError(f"no prompts{f' among {num_bad} bad lines' if num_bad else ': the file is empty'}.", path=path)
    return rows


def _way_out(column: str | None, *, has_flags: bool) -> str:
    """What to do about a bad line; a recipe has a key where a command has a flag."""
    ways = ["Correct it"]
    if column is not None:
        ways.append(
            f"read the rows without it (--ignore-column {column})"
            if has_flags
            else f"list {column} under the prompts' ignore_columns"
        )
    if has_flags:
        ways.append("give --skip-bad-lines to go on without the line")
    return f"{', or '.join(ways)}."


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends; empty lines at the end of the file are not lines."""
    lines = _read(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    yield from enumerate(lines, start=1)


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    if path.startswith(SHIPPED):
        return _shipped(path)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError("there is no such file; prompts are read from a .jsonl or .txt file.", path=path) from None
    except IsADirectoryError:
        raise DataError("this is a directory; prompts are read from a .jsonl or .txt file.", path=path) from None


def _shipped(name: str) -> bytes:
    """Prompts that ship, as JSON lines."""
    from trimtab.evaluation.prompt_sets import PROMPT_SETS

    prompts = PROMPT_SETS.get(name.removeprefix(SHIPPED))
    if prompts is None:
        raise unknown_name("list of prompts that ships", name, [f"{SHIPPED}{known}" for known in PROMPT_SETS])
    return "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts()).encode()


def _row(path: str, line: int, data: bytes, guide_names: set[str], ignored: Collection[str]) -> PromptRow:
    def bad(problem: str) -> DataError:
        return DataError(problem, path=path, line=line)

    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise bad(f"not UTF-8 text ({error.reason}).") from None
    if not text:
        raise bad("an empty line.")
    if path.endswith(".txt"):
        return PromptRow(text, path=path, line=line)
    try:
        fields = read_json(text)
    except ValueError as error:
        raise bad(f"not JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise bad(f"a JSON {type(fields).__name__}, where an object with a prompt should be.")
    try:
        fields = {name: value for name, value in fields.items() if name not in ignored}
        _check_fields(fields)
        return PromptRow(
            _prompt_of(fields),
            _weights(fields.get("weights"), guide_names),
            _seed(fields.get("seed")),
            path,
            line,
        )
    except OptionError as error:
        raise bad(str(error)) from None
    except ColumnError as error:
        raise ColumnError(f"the row {error}", error.column) from None


def _check_fields(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        known = name in _FIELDS or is_empty(value) or is_metadata(name) or is_answer(name)
        if not known and difflib.get_close_matches(name.lower(), _FIELDS, n=1, cutoff=0.75):
            raise unknown_name("field", name, _FIELDS)
    if "prompt" not in fields and question_of(fields) is None:
        raise OptionError(f'no "prompt" among the fields ({", ".join(sorted(fields)) or "none"}).')
    check_columns(fields, _FIELDS)


def _prompt_of(fields: Mapping[str, Any]) -> Prompt:
    """A row's prompt with what stands beside it: a question is a user's message, and so is a text with a context."""
    if "prompt" not in fields:
        return in_context(fields, question_of(fields) or "", chat=True)  # type: ignore[no-any-return]
    prompt = _prompt(fields["prompt"])
    check_question(fields, prompt)
    return in_context(fields, prompt)  # type: ignore[no-any-return]


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value:
        if all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value):
            return [int(item) for item in value]
        if all(_is_message(item) for item in value):
            return [plain_message(item) for item in value]
    raise OptionError(
        'the prompt is empty, or neither text nor chat messages ([{"role": "user", "content": "..."}]) nor token ids.'
    )


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        return False
    return isinstance(item.get("content"), str) or (item.get("content") is None and bool(item.get("tool_calls")))


def _weights(value: Any, guide_names: set[str]) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise OptionError('"weights" is not an object of guide names and numbers.')
    for name, weight in value.items():
        if name not in guide_names:
            raise unknown_name("guide", name, guide_names)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise OptionError(f"the weight of {name} is {weight!r}; give a finite number.")
    return {name: float(weight) for name, weight in value.items()}


def _seed(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED):
        return value
    raise OptionError(f'"seed" is {value!r}; give a whole number of at least 0.')


def as_chat(prompt: Prompt) -> Prompt:
    """A string as a user's message; anything else as it is."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def as_asked(prompt: Prompt, *, chat: bool, options: Mapping[str, Any]) -> Prompt:
    """A prompt as it is put to the model: text as a user's message with `chat`, with what the template is told.

    Raises PromptError where there are options and the prompt goes through no template.
    """
    from trimtab.prompts import with_options

    return with_options(as_chat(prompt) if chat else prompt, options)


def prompts_of(texts: Sequence[str]) -> list[PromptRow]:
    """The rows of `--prompt`, given once or several times."""
    if not all(texts):
        raise OptionError("--prompt is empty; give a text.")
    return [PromptRow(text) for text in texts]


def use_template(choice: str, tokenizer: Tokenizer) -> bool:
    """Whether plain text goes through the chat template; raises OptionError for `--chat` without one."""
    if choice == "chat" and not tokenizer.has_chat_template:
        raise OptionError("--chat: this model has no chat template. Give --raw, or a model tuned for chat.")
    return choice != "raw" and bool(tokenizer.has_chat_template)
