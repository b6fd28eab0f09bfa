"""Calls read back out of an answer while it grows: what is text, and what is a call's name and arguments.

The answer follows the grammar of its request (`constraining/calls`), unless it was cut. Text stands for good once no
mark of a call can begin in it; of a call its name stands as soon as it is complete, its arguments piece by piece.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.calls import CALL_ID, NAME, WHITE, CallFormat, Spelled


@dataclass(slots=True)
class Call:
    """A call, as far as it is written."""

    name: str
    arguments: str = ""
    is_complete: bool = False


@dataclass(frozen=True, slots=True)
class Grown:
    """What a piece of an answer adds to its text, or to one of its calls."""

    text: str = ""
    place: int | None = None
    """Which call it adds to; None: the text."""
    is_new: bool = False
    """Whether the call begins with this."""
    arguments: str = ""


class CallReader:
    """Reads one answer. `is_first`: a call can stand at the answer's beginning alone."""

    def __init__(self, written: CallFormat, *, is_first: bool) -> None:
        self.text = ""
        self.calls: list[Call] = []
        self.has_begun = False
        """Whether the mark of a call has been read."""
        silent = written.silent
        self._mark = _character(written.mark, silent)
        self._is_first = is_first
        self._head = _head(written.opening, written, silent)
        self._next = None if written.joint is None else _head(written.joint, written, silent)
        self._held = ""
        self._json = _Object()
        self._is_text = False  # for good

    @property
    def is_complete(self) -> bool:
        """Whether there are calls, with all their arguments."""
        return bool(self.calls) and self.calls[-1].is_complete

    def push(self, piece: str) -> list[Grown]:
        """What more of the answer makes certain. A token of the format without text is its character in
        `CallFormat.silent`."""
        self._held += piece
        grown: list[Grown] = []
        while (step := self._step()) is not None:
            grown += step
        return grown

    def finish(self, *, is_cut: bool) -> list[Grown]:
        """What the end of the answer makes certain: text that might have become a call. Where the answer `is_cut`, what
        may be the beginning of a mark is left out."""
        if self.has_begun or not self._held:
            return []
        rest, self._held = self._held, ""
        rest = rest[: len(rest) - self._num_begun(rest)] if is_cut else rest
        self.text += rest
        return [Grown(rest)] if rest else []

    def _step(self) -> list[Grown] | None:
        """One thing that can be read now; None: nothing more can."""
        if not self._held:
            return None
        if not self.has_begun:
            return self._text()
        if not self.calls or self.calls[-1].is_complete:
            return self._name()
        return self._arguments()

    def _text(self) -> list[Grown] | None:
        at = self._place_of_mark()
        if at is None:
            certain = len(self._held) - self._num_open()
        else:
            self.has_begun = True
            certain = len(self._held[:at].rstrip(WHITE))
        said, self._held = self._held[:certain], self._held[certain if at is None else at :]
        self.text += said
        self._is_text = self._is_text or (self._is_first and bool(said))
        if not said and at is None:
            return None
        return [Grown(said)] if said else []

    def _place_of_mark(self) -> int | None:
        if self._is_text:
            return None
        at = self._held.find(self._mark)
        if at < 0 or (self._is_first and self._held[:at].strip(WHITE)):
            return None
        return at

    def _num_open(self) -> int:
        """Characters at the end that may stand in front of a mark or begin one."""
        if self._is_text:
            return 0
        before = self._held[: len(self._held) - self._num_begun(self._held)]
        return len(self._held) - len(before.rstrip(WHITE))

    def _num_begun(self, text: str) -> int:
        """Characters at the end of a text that begin a mark."""
        most = 0 if self._is_text else min(len(text), len(self._mark) - 1)
        return next((num for num in range(most, 0, -1) if self._mark.startswith(text[-num:])), 0)

    def _name(self) -> list[Grown] | None:
        pattern = self._head if not self.calls else self._next
        found = None if pattern is None else pattern.match(self._held)
        if found is None:
            return None
        self._held = self._held[found.end() :]
        self.calls.append(Call(found["name"]))
        self._json = _Object()
        return [Grown(place=len(self.calls) - 1, is_new=True)]

    def _arguments(self) -> list[Grown] | None:
        end = self._json.end(self._held)
        said = self._held if end is None else self._held[:end]
        self._held = self._held[len(said) :]
        self.calls[-1].arguments += said
        self.calls[-1].is_complete = end is not None
        return [Grown(place=len(self.calls) - 1, arguments=said)]


@dataclass(slots=True)
class _Object:
    """Where a JSON object ends."""

    depth: int = 0
    in_text: bool = False
    is_escaped: bool = False

    def end(self, piece: str) -> int | None:
        """Behind which character of the next piece the object ends; None: it goes on."""
        for place, character in enumerate(piece, 1):
            if self.in_text:
                if self.is_escaped:
                    self.is_escaped = False
                elif character == "\\":
                    self.is_escaped = True
                elif character == '"':
                    self.in_text = False
            elif character == '"':
                self.in_text = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth == 0:
                    return place
        return None


def _head(before: Spelled, written: CallFormat, silent: Mapping[int, str]) -> re.Pattern[str]:
    """What stands before a call's name, the name, and what stands before its arguments."""
    return re.compile(f"{_pattern(before, silent)}(?P<name>{NAME}){_pattern(written.between, silent)}")


def _pattern(parts: Spelled, silent: Mapping[int, str]) -> str:
    return "".join(CALL_ID if part is None else re.escape(_character(part, silent)) for part in parts)


def _character(part: str | int, silent: Mapping[int, str]) -> str:
    return part if isinstance(part, str) else silent[part]
