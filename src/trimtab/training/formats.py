"""From a row of a published preference data set to a pair: one function a shape, and the one table of shapes.

Shapes: TRL's preference format (messages or plain text, with or without an explicit prompt), the transcripts of
HH-RLHF (Bai et al., arXiv 2204.05862), PKU-SafeRLHF (Ji et al., arXiv 2406.15513), and UltraFeedback (Cui et al.,
arXiv 2310.01377) as binarised message lists (TRL's shape) or as completions with scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.core import Message
from trimtab.errors import OptionError, unknown_name

Row = Mapping[str, Any]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SCORES = ("fine-grained_score", "overall_score", "score")


class RowError(Exception):
    """Why a row gives no pair; the reader adds where it stands."""


class TieError(Exception):
    """A row in order, but without a preferred answer."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt, the response that was preferred, and the one that was not.

    A prompt of messages goes through the model's chat template; a string is raw text.
    """

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str


def convert(row: Row, format_name: str) -> PreferencePair:
    """One row as a pair. Raises RowError (malformed) or TieError (a tie)."""
    pair = FORMATS[format_name](row)
    for name in ("chosen", "rejected"):
        if not getattr(pair, name).strip():
            raise RowError(f"the {name} response is empty; give some text")
    if pair.chosen == pair.rejected:
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
        transcripts = isinstance(row["chosen"], str) and "prompt" not in keys and _TURN.match(row["chosen"])
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
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            prompt, chosen, rejected = _split_text(chosen, rejected)
        if not isinstance(prompt, str):
            raise RowError("`prompt` is not text though the responses are; give all three as text or as messages")
        return PreferencePair(prompt, chosen, rejected)
    left, right = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if prompt is not None and not isinstance(prompt, str):
        start = _messages(prompt, "prompt")
        return PreferencePair(start, _answer(left, "chosen"), _answer(right, "rejected"))
    # Without a prompt of messages (UltraFeedback repeats it as text) the dialogue so far is what the two share.
    shared = _shared(left, right)
    if prompt is not None and not shared:
        shared = ({"role": "user", "content": prompt},)
        return PreferencePair(shared, _answer(left, "chosen"), _answer(right, "rejected"))
    rest = len(shared)
    return PreferencePair(shared, _answer(left[rest:], "chosen"), _answer(right[rest:], "rejected"))


def _transcripts(row: Row) -> PreferencePair:
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise RowError("chosen and rejected are not text; --format hh takes '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    left, right = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    if left[:-1] != right[:-1]:
        raise RowError("chosen and rejected are different dialogues before the last answer; a pair shares its prompt")
    return PreferencePair(left[:-1], _answer(left[-1:], "chosen"), _answer(right[-1:], "rejected"))


def _saferlhf(label: str) -> Callable[[Row], PreferencePair]:
    def pair(row: Row) -> PreferencePair:
        prompt, responses = _text(row, "prompt"), (_text(row, "response_0"), _text(row, "response_1"))
        best = _field(row, label)
        if isinstance(best, bool) or best not in (0, 1):
            raise RowError(f"`{label}` is {best!r}; accepted: 0 or 1")
        return PreferencePair(({"role": "user", "content": prompt},), responses[best], responses[1 - best])

    return pair


def _ultrafeedback(row: Row) -> PreferencePair:
    """The completion with the highest score against the one with the lowest."""
    prompt, completions = _text(row, "instruction"), _field(row, "completions")
    if not isinstance(completions, Sequence) or len(completions) < 2:
        raise RowError("`completions` is not a list of two or more; there is nothing to prefer")
    scored = [(_score(completion), _text(completion, "response")) for completion in completions]
    best, worst = max(scored, key=lambda item: item[0]), min(scored, key=lambda item: item[0])
    if best[0] == worst[0]:
        raise TieError
    return PreferencePair(({"role": "user", "content": prompt},), best[1], worst[1])


FORMATS: Mapping[str, Callable[[Row], PreferencePair]] = {
    "preference": _preference,
    "hh": _transcripts,
    "pku-helpful": _saferlhf("better_response_id"),
    "pku-safer": _saferlhf("safer_response_id"),
    "ultrafeedback": _ultrafeedback,
}
"""The one table from a format's name to what reads a row of it."""


def _field(row: Any, name: str) -> Any:
    if not isinstance(row, Mapping):
        raise RowError(f"{str(row)[:40]!r} is not a JSON object")
    if row.get(name) is None:
        raise RowError(f"`{name}` is missing; the row has {', '.join(sorted(map(str, row))) or 'no keys'}")
    return row[name]


def _text(row: Any, name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"`{name}` is {str(value)[:40]!r}; give some text")
    return value


def _score(completion: Any) -> float:
    for name in _SCORES:
        value = completion.get(name) if isinstance(completion, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            return float(value)
    raise RowError(f"a completion has no score; accepted: a number in {', '.join(_SCORES)}")


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowError(f"`{name}` is {str(value)[:40]!r}; give text, or a list of messages with role and content")
    for message in value:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise RowError(f"`{name}` holds {str(message)[:40]!r}; a message has a role and a content of text")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _answer(messages: Sequence[Message], name: str) -> str:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages) or "nothing"
        raise RowError(f"`{name}` ends in {roles} where one message of the assistant is expected")
    return messages[0]["content"]


def _shared(left: Sequence[Message], right: Sequence[Message]) -> tuple[Message, ...]:
    count = 0
    while count < min(len(left), len(right)) - 1 and left[count] == right[count]:
        count += 1
    return tuple(left[:count])


def _turns(text: str, name: str) -> tuple[Message, ...]:
    """An HH-RLHF transcript as messages."""
    parts = _TURN.split(text)
    if parts[0].strip() or len(parts) < 5:
        raise RowError(f"`{name}` is no transcript; expected '\\n\\nHuman: ...' and then '\\n\\nAssistant: ...'")
    return tuple(
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    )


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt that two texts share, and what follows it; words are not cut."""
    differ = (i for i, (left, right) in enumerate(zip(chosen, rejected, strict=False)) if left != right)
    shared = chosen[: next(differ, min(len(chosen), len(rejected)))]
    end = max(shared.rfind(space) for space in " \n\t")
    if end >= 0 and shared[end] != " ":  # a space begins the next word, as tokenizers have it; a line break ends one
        end += 1
    end = max(end, 0)
    return chosen[:end], chosen[end:], rejected[end:]
