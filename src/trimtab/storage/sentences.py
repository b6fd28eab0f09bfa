"""A guide made of a sentence, by name: `prompt:"SENTENCE"`, `prompt:"ONE"/"OTHER"` (away from it), `prompt:@FILE`.

A name is written by a person, mostly behind a shell that has taken its quotes away, so quotes are read where they are
and done without where they are not. What could be read in two ways is refused. `sentence_name` writes the one form that
reads back to the same guide, in double quotes as in JSON; names that are kept have this form.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

from trimtab.errors import CheckpointError, OptionError
from trimtab.guides.sentences import AUTO, Sentences, cut
from trimtab.storage.cards import GuideCard

FORM = 'prompt:"SENTENCE"[/"OTHER"] or prompt:@FILE[/@FILE]'
"""What is accepted, for messages."""
_QUOTED_FORM = """'prompt:"towards this"/"away from that"'"""
_HEAD = re.compile(r"prompt(?:-(system|user))?:")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_BETWEEN = re.compile(r"(?<=[.!?…。！？\"'”’)])/(?=\S)")
"""A slash between two sentences: it stands behind what ends one."""
_BETWEEN_FILES = re.compile(r"/(?=[@\"])")
_AFTER_QUOTES = re.compile(rf"\s*(/|:\s*({_NUMBER.pattern}|[+-]?(inf|nan)\w*)\s*$|$)", re.IGNORECASE)
"""What stands behind a sentence in quotes, blanks or not: another one, a weight, or nothing."""
_MOST_BYTES = 1 << 20


def is_sentence(name: str | Path) -> bool:
    """Whether a guide's name is that of a guide made of a sentence."""
    return _HEAD.match(str(name)) is not None


def sentence_name(guide: Sentences) -> str:
    """The name that reads back to the same sentences and the same place."""
    head = "prompt:" if guide.place == AUTO else f"prompt-{guide.place}:"
    return head + "/".join(json.dumps(sentence, ensure_ascii=False) for sentence in guide.sentences)


def read_sentence(name: str | Path, *, home: Path | None = None) -> Sentences:
    """The guide that a name stands for; files are read from `home`, a relative one's directory.

    Raises OptionError for a name that cannot be read, and for a file that is not there or says nothing.
    """
    guide, weight = read_weighed(str(name), home=home)
    return guide if weight is None else replace(guide, weight=weight)


def read_weighed(target: str, *, home: Path | None = None) -> tuple[Sentences, float | None]:
    """The guide of a name that may end in `:WEIGHT`, and that weight. Raises OptionError as `read_sentence`."""
    head = _HEAD.match(target)
    if head is None:
        raise OptionError(f"{target!r} is not a sentence. Accepted: {FORM}.")
    text = target[head.end() :]
    if not text.strip():
        raise OptionError(f"{target!r} has no sentence behind the colon. Accepted: {FORM}.")
    operands, weight = _quoted(text) or _plain(text)
    towards, *others = [_said(operand, quoted, home or Path()) for operand, quoted in operands]
    return Sentences(towards, others[0] if others else None, place=head.group(1) or AUTO), weight


def kept_sentence(directory: Path, card: GuideCard, *, weight: float | None = None) -> Sentences:
    """The guide that a card keeps, at this strength or the card's. Raises CheckpointError for one that says nothing."""
    if "towards" not in card.sentences:
        raise CheckpointError(f"{directory}: the card of a guide made of a sentence has no prompt.towards. Write it.")
    strength = card.weight if weight is None else weight
    try:
        return Sentences(weight=1.0 if strength is None else strength, **card.sentences)
    except OptionError as error:
        raise CheckpointError(f"{directory}: {error}") from None


_Operands = list[tuple[str, bool]]
"""Each side as it was written, and whether that was in quotes, so that an @ is not a file's."""


def _quoted(text: str) -> tuple[_Operands, float | None] | None:
    """`"..."`, maybe with another side and a weight behind it; None where the quotes are the sentence's own."""
    try:
        towards, end = json.JSONDecoder(strict=False).raw_decode(text)
    except ValueError:
        return None
    rest = text[end:]
    if not isinstance(towards, str) or (rest and rest[0] not in "/:") or re.match(r":.*\s", rest):
        return None
    if not rest.startswith("/"):
        return [(towards, True)], _weight(rest[1:], text) if rest else None
    behind = _quoted(rest[1:])
    if behind is not None:
        if len(behind[0]) > 1:
            raise OptionError(
                f"{text!r} has more than two sentences in quotes. A guide has one to go towards and one to go away "
                f"from: {_QUOTED_FORM}; name further ones as guides of their own."
            )
        return [(towards, True), *behind[0]], behind[1]
    away, weight = _split_weight(rest[1:])
    return [(towards, True), (away, False)], weight


def _not_half_quoted(text: str) -> str:
    """The text, which is not in quotes. Raises OptionError for one that may have been meant to be."""
    begun = text.lstrip()
    if not begun.startswith('"'):
        return text
    try:
        _, end = json.JSONDecoder(strict=False).raw_decode(begun)
    except ValueError as error:
        why = f"begins with a double quote and cannot be read as JSON reads a text ({error})"
    else:
        if not _AFTER_QUOTES.match(begun[end:]):
            return text
        why = "has blanks around its quotes"
    raise OptionError(
        f"{text!r} {why}. Write {_QUOTED_FORM} without blanks between the parts, and a quote or a backslash of the "
        'sentence itself as \\" or \\\\.'
    )


def _plain(text: str) -> tuple[_Operands, float | None]:
    """The same without quotes."""
    text, weight = _split_weight(text)
    sides = _BETWEEN_FILES.split(text, 1) if text.startswith("@") else _BETWEEN.split(text)
    if len(sides) > 2:
        raise OptionError(
            f"{text!r} has {len(sides) - 1} slashes that could divide two sentences. Put each sentence in double "
            f"quotes, within single ones for the shell: {_QUOTED_FORM}."
        )
    operands: _Operands = [(sides[0], False)]
    if len(sides) == 2:
        whole = _quoted(sides[1])
        operands += whole[0] if whole is not None and len(whole[0]) == 1 else [(sides[1], False)]
    return operands, weight


def _split_weight(text: str) -> tuple[str, float | None]:
    """(the text, its weight) where a number stands behind its last colon. Raises OptionError where that is in doubt."""
    before, colon, tail = text.rpartition(":")
    if not colon or not before:
        return text, None
    if _NUMBER.fullmatch(tail):
        if before[-1].isdigit() and not before.startswith("@"):
            raise OptionError(
                f"{text!r} ends in {before[-1]}:{tail}, which may be part of the sentence or its weight. Put the "
                f"sentence in double quotes, within single ones for the shell: 'prompt:\"...{before[-1]}\":{tail}'."
            )
        return before, _weight(tail, text)
    if tail and not re.search(r"\s", tail) and before[-1] in ".!?\"'":
        return before, _weight(tail, text)
    return text, None


def _weight(tail: str, text: str) -> float:
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise OptionError(f"The weight {tail!r} behind {cut(text)!r} is not a finite number. Give one, such as :1.5.")
    return weight


def _said(operand: str, quoted: bool, home: Path) -> str:
    """The sentence, read from its file where it names one."""
    if quoted:
        return operand
    if not operand.startswith("@"):
        return _not_half_quoted(operand)
    path = home / operand[1:]
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise OptionError(f"The sentence's file {path} has more than {_MOST_BYTES} bytes. Give a short text.")
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise OptionError(
            f"There is no file {path}, which a guide's sentence is to be read from. Give a text file, or the sentence "
            f"itself: {FORM}. A sentence that begins with @ stands in double quotes."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read as a sentence ({error}). Give a text file in UTF-8.") from None
    if not text:
        raise OptionError(f"The file {path} is empty, and a guide's sentence was to be read from it.")
    return text
