"""From a row of a published preference data set to a pair: one function a shape, and the one table of shapes.

Shapes: TRL's preference format (messages or plain text, with or without an explicit prompt), the transcripts of
HH-RLHF (Bai et al., arXiv 2204.05862), PKU-SafeRLHF (Ji et al., arXiv 2406.15513), and UltraFeedback (Cui et al.,
arXiv 2310.01377) as binarised message lists (TRL's shape) or as completions with scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from trimtab.columns import (
    CONTEXT,
    SYSTEM,
    ColumnError,
    check_columns,
    check_question,
    in_context,
    is_empty,
    plain_message,
    question_of,
)
from trimtab.core import Message
from trimtab.errors import OptionError, unknown_name

Row = Mapping[str, object]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_LONG_ENOUGH = 12
"""Characters of a prompt that no two answers hold by chance."""
_SCORES = ("fine-grained_score", "overall_score", "score")


class RowError(Exception):
    """Why a row gives no pair; the reader adds where it stands."""


class TieError(Exception):
    """A row in order, but without a preferred answer."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt, the response that was preferred, and the one that was not.

    A prompt of messages goes through the model's chat template (a `Chat` says how); a string is raw text.
    """

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_keys: Message = field(default_factory=dict)
    """What the message of the preferred response has besides its content: a thought, calls of tools."""
    rejected_keys: Message = field(default_factory=dict)

    @property
    def answers(self) -> tuple[Message, Message]:
        """The preferred response and the other, as messages of the assistant."""
        both = ((self.chosen, self.chosen_keys), (self.rejected, self.rejected_keys))
        chosen, rejected = ({**keys, "role": "assistant", "content": text} for text, keys in both)
        return chosen, rejected


def convert(row: Row, format_name: str) -> PreferencePair:
    """One row as a pair. Raises RowError (malformed, or a column that would be lost) or TieError (a tie)."""
    try:
        check_columns(row, {*_USED[format_name], *CONTEXT, *_repeats(row)})
        pair = FORMATS[format_name](row)
    except ColumnError as error:
        without = "" if error.column is None else f", or read the rows without it: --ignore-column {error.column}"
        raise RowError(f"{error}{without}") from None
    for name in ("chosen", "rejected"):
        if not (getattr(pair, name).strip() or getattr(pair, f"{name}_keys")):
            raise RowError(f"the {name} response is empty; give some text")
    if pair.answers[0] == pair.answers[1]:
        raise RowError("chosen and rejected are the same text; a pair needs two different responses")
    if not pair.prompt:
        raise RowError("there is no prompt: no `prompt`, and chosen and rejected begin with nothing in common")
    return pair


def detect(row: Row) -> str:
    """The format of a row, by its shape. Raises RowError, or OptionError where the shape leaves a choice."""
    keys = row.keys()
    if {"response_0", "response_1"} <= keys:
        raise OptionError(
            "This looks like PKU-SafeRLHF, which carries two preferences. Say which one to learn: "
            "--format pku-helpful (better_response_id) or --format pku-safer (safer_response_id)."
        )
    if "completions" in keys:
        return "ultrafeedback"
    if {"chosen", "rejected"} <= keys:
        transcripts = isinstance(row["chosen"], str) and is_empty(row.get("prompt")) and _TURN.match(row["chosen"])
        return "hh" if transcripts else "preference"
    raise RowError(
        f"has the keys {', '.join(sorted(map(str, keys))) or '(none)'}; accepted: chosen and rejected (with or without "
        "prompt), prompt with response_0 and response_1, or instruction with completions"
    )


def check_format(name: str) -> str:
    """`name` if it is a format, else OptionError with the nearest one."""
    if name != "auto" and name not in FORMATS:
        raise unknown_name("format", name, ["auto", *FORMATS])
    return name


def _preference(row: Row) -> PreferencePair:
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    prompt = row.get("prompt")
    if prompt is not None:
        check_question(row, prompt)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _of_texts(row, prompt, chosen, rejected)
    left, right = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if prompt is not None and not isinstance(prompt, str):
        start = _messages(prompt, "prompt")
        rest = len(start) if left[: len(start)] == right[: len(start)] == start else 0
        return _pair(row, start, left[rest:], right[rest:])
    # Without a prompt of messages (UltraFeedback repeats it as text) the dialogue so far is what the two share.
    shared, asked = _shared(left, right), question_of(row) if prompt is None else prompt
    rest = len(shared)
    if asked is not None and not shared:
        shared = ({"role": "user", "content": asked},)
    elif asked is not None and not any(asked.strip() in str(message.get("content")) for message in shared):
        raise RowError("`prompt` is not in the turns that chosen and rejected share; say in one place what is asked")
    return _pair(row, shared, left[rest:], right[rest:])


def _of_texts(row: Row, prompt: object, chosen: str, rejected: str) -> PreferencePair:
    """A pair of two texts: what continues a raw text, or answers to a question."""
    asked = question_of(row) if is_empty(prompt) else None
    if asked is None and is_empty(prompt):
        if named := next((name for name in SYSTEM if not is_empty(row.get(name))), None):
            raise RowError(f"there is `{named}` and no `prompt` or `question` that it belongs to; give one")
        beginning, chosen, rejected = _split_text(chosen, rejected)
        return PreferencePair(beginning, chosen, rejected)
    elif not isinstance(text := prompt if asked is None else asked, str):
        raise RowError("`prompt` is not text though the responses are; give all three as text or as messages")
    elif _TURN.match(chosen) and _TURN.match(rejected) and not _TURN.match(text):
        return _repeated_transcripts(row, text, chosen, rejected)
    whole = in_context(row, text, chat=asked is not None)
    chosen, rejected = _without_prompt(text, chosen, rejected, raw=isinstance(whole, str))
    return PreferencePair(whole if isinstance(whole, str) else _as_tuple(whole), chosen, rejected)


def _without_prompt(prompt: str, chosen: str, rejected: str, *, raw: bool) -> tuple[str, str]:
    """Two texts without the prompt that both begin with.

    Raises RowError where a raw text would be read twice otherwise; in a chat, an answer may well repeat the question.
    """
    said = prompt.strip()
    behind = prompt[len(prompt.rstrip()) :]
    repeats = [bool(said) and text.lstrip().startswith(said) for text in (chosen, rejected)]
    if all(repeats):
        left, right = (text.lstrip()[len(said) :].removeprefix(behind) for text in (chosen, rejected))
        return left, right
    if not raw or len(said) < _LONG_ENOUGH:
        return chosen, rejected
    if any(repeats):
        first, other = ("chosen", "rejected") if repeats[0] else ("rejected", "chosen")
        raise RowError(f"`{first}` repeats the prompt and `{other}` does not; give the answers alone in both")
    if said in _common(chosen, rejected):
        raise RowError("chosen and rejected both hold the prompt, so it would be read twice; give the answers alone")
    return chosen, rejected


def _repeated_transcripts(row: Row, prompt: str, chosen: str, rejected: str) -> PreferencePair:
    """Transcripts as of HH-RLHF beside the prompt that they begin with."""
    left, right = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    if left[:-1] != right[:-1] or not any(prompt.strip() in text for text in (left[-2]["content"], chosen)):
        raise RowError(
            "chosen and rejected are transcripts that do not both begin with `prompt`; give the answers alone"
        )
    return _pair(row, left[:-1], left[-1:], right[-1:])


def _transcripts(row: Row) -> PreferencePair:
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise RowError("chosen and rejected are not text; --format hh takes '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    left, right = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    if left[:-1] != right[:-1]:
        raise RowError("chosen and rejected are different dialogues before the last answer; a pair shares its prompt")
    check_question(row, left[:-1])
    return _pair(row, left[:-1], left[-1:], right[-1:])


def _saferlhf(label: str) -> Callable[[Row], PreferencePair]:
    def pair(row: Row) -> PreferencePair:
        prompt, responses = _text(row, "prompt"), (_text(row, "response_0"), _text(row, "response_1"))
        check_question(row, prompt)
        best = _field(row, label)
        if isinstance(best, bool) or best not in (0, 1):
            raise RowError(f"`{label}` is {best!r}; accepted: 0 or 1")
        return PreferencePair(_as_tuple(in_context(row, prompt, chat=True)), responses[best], responses[1 - best])

    return pair


def _ultrafeedback(row: Row) -> PreferencePair:
    """The completion with the highest score against the one with the lowest."""
    prompt, completions = _text(row, "instruction"), _field(row, "completions")
    question_of(row)
    if not isinstance(completions, Sequence) or len(completions) < 2:
        raise RowError("`completions` is not a list of two or more; there is nothing to prefer")
    scored = [(_score(completion), _text(completion, "response")) for completion in completions]
    best, worst = max(scored, key=lambda item: item[0]), min(scored, key=lambda item: item[0])
    if best[0] == worst[0]:
        raise TieError
    return PreferencePair(_as_tuple(in_context(row, prompt, chat=True)), best[1], worst[1])


def _pair(
    row: Row, prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]
) -> PreferencePair:
    """A pair of messages in the row's context."""
    left, right = _answer(chosen, "chosen"), _answer(rejected, "rejected")
    keys = [{name: answer[name] for name in answer if name not in ("role", "content")} for answer in (left, right)]
    prompt = _as_tuple(in_context(row, prompt)) if prompt else ()
    return PreferencePair(prompt, left.get("content") or "", right.get("content") or "", *keys)


def _as_tuple(prompt: Sequence[Message]) -> tuple[Message, ...]:
    return prompt if isinstance(prompt, tuple) else tuple(prompt)


def _repeats(row: Row) -> list[str]:
    """Columns that say again what is used: UltraFeedback's `messages` is `chosen`, or `prompt` and `chosen`."""
    prompt, chosen, rejected = (list(value) if isinstance(value := row.get(name), list) else [] for name in _TRIPLE)
    dialogues = [prompt, chosen, rejected, prompt + chosen]
    names = ("messages", "conversation", "conversations")
    return [name for name in names if not is_empty(row.get(name)) and row[name] in dialogues]


FORMATS: Mapping[str, Callable[[Row], PreferencePair]] = {
    "preference": _preference,
    "hh": _transcripts,
    "pku-helpful": _saferlhf("better_response_id"),
    "pku-safer": _saferlhf("safer_response_id"),
    "ultrafeedback": _ultrafeedback,
}
"""The one table from a format's name to what reads a row of it."""

_TRIPLE = ("prompt", "chosen", "rejected")
_PAIR = frozenset(_TRIPLE)
_SAFE = frozenset({"prompt", "response_0", "response_1", "better_response_id", "safer_response_id"})
_USED: Mapping[str, frozenset[str]] = {
    "preference": _PAIR,
    "hh": _PAIR - {"prompt"},
    "pku-helpful": _SAFE,
    "pku-safer": _SAFE,
    "ultrafeedback": frozenset({"instruction", "completions"}),
}
"""The columns that each format reads, besides those of `columns.CONTEXT`."""


def _field(row: object, name: str) -> object:
    if not isinstance(row, Mapping):
        raise RowError(f"{str(row)[:40]!r} is not a JSON object")
    if row.get(name) is None:
        raise RowError(f"`{name}` is missing; the row has {', '.join(sorted(map(str, row))) or 'no keys'}")
    return row[name]


def _text(row: object, name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"`{name}` is {str(value)[:40]!r}; give some text")
    return value


def _score(completion: object) -> float:
    for name in _SCORES:
        value = completion.get(name) if isinstance(completion, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            return float(value)
    raise RowError(f"a completion has no score; accepted: a number in {', '.join(_SCORES)}")


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowError(f"`{name}` is {str(value)[:40]!r}; give text, or a list of messages with role and content")
    for message in value:
        content = message.get("content") if isinstance(message, Mapping) else None
        called = content is None and isinstance(message, Mapping) and message.get("tool_calls")
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RowError(f"`{name}` holds {str(message)[:40]!r}; a message has a role and a content of text")
        if not (isinstance(content, str) or called):
            raise RowError(f"`{name}` holds {str(message)[:40]!r}; a message has a role and a content of text")
    return tuple(plain_message(message) for message in value)


def _answer(messages: Sequence[Message], name: str) -> Message:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages) or "nothing"
        raise RowError(f"`{name}` ends in {roles} where one message of the assistant is expected")
    return messages[0]


def _shared(left: Sequence[Message], right: Sequence[Message]) -> tuple[Message, ...]:
    count = 0
    while count < min(len(left), len(right)) - 1 and left[count] == right[count]:
        count += 1
    return tuple(left[:count])


def _turns(text: str, name: str) -> tuple[Message, ...]:
    """An HH-RLHF transcript as messages."""
    parts = _TURN.split(text)
    if parts[0].strip() or len(parts) < 5:
        raise RowError(f"`{name}` is not a transcript; expected '\\n\\nHuman: ...' and then '\\n\\nAssistant: ...'")
    return tuple(
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    )


def _common(left: str, right: str) -> str:
    """The longest start that two texts share."""
    differ = (i for i, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
    return left[: next(differ, min(len(left), len(right)))]


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt that two texts share, and what follows it; words are not cut."""
    shared = _common(chosen, rejected)
    end = max(shared.rfind(space) for space in " \n\t")
    if end >= 0 and shared[end] != " ":  # a space begins the next word, as tokenizers have it; a line break ends one
        end += 1
    end = max(end, 0)
    return chosen[:end], chosen[end:], rejected[end:]
