"""Calls of tools in OpenAI's shapes: in the pieces of a stream, and in a whole message."""

from __future__ import annotations

import codecs
import secrets
import string
from collections.abc import Sequence
from typing import Any

from trimtab.answers import Step
from trimtab.serving.reading_calls import Grown
from trimtab.serving.tools import Calling

Json = dict[str, Any]

_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9
"""Characters of a call's id; some chat templates take no other number."""


class CallWriter:
    """What of one answer is text, and what calls tools."""

    def __init__(self, calling: Calling) -> None:
        self._reader = calling.reader()
        self._silent = calling.written.silent
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._ids: list[str] = []

    @property
    def text(self) -> str:
        """What is said beside the calls, so far."""
        return self._reader.text

    @property
    def is_complete(self) -> bool:
        """Whether there are calls, with all their arguments."""
        return self._reader.is_complete

    def take(self, step: Step, added: bytes) -> list[Grown]:
        """What a step makes certain that adds so much to the text."""
        silent = None if step.token_id is None else self._silent.get(step.token_id)
        return self._reader.push(self._characters.decode(added) if added or silent is None else silent)

    def finish(self, *, is_cut: bool) -> list[Grown]:
        """What the answer's end makes certain. Where it `is_cut`, a mark of a call that has begun is left out."""
        return self._reader.finish(is_cut=is_cut)

    def delta(self, grown: Sequence[Grown]) -> Json:
        """What is new, as a stream says it."""
        said: Json = {}
        if text := "".join(one.text for one in grown):
            said["content"] = text
        calls: dict[int, Json] = {}
        for one in grown:
            if one.place is None:
                continue
            if one.is_new:
                calls[one.place] = {"index": one.place, **self._call(one.place, "")}
            entry = calls.setdefault(one.place, {"index": one.place, "function": {"arguments": ""}})
            entry["function"]["arguments"] += one.arguments
        return {**said, "tool_calls": list(calls.values())} if calls else said

    def message(self) -> Json:
        """The whole message."""
        calls = [self._call(place, call.arguments) for place, call in enumerate(self._reader.calls)]
        said = {"role": "assistant", "content": self.text or (None if calls else ""), "refusal": None}
        return {**said, "tool_calls": calls} if calls else said

    def _call(self, place: int, arguments: str) -> Json:
        while len(self._ids) <= place:
            self._ids.append("".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH)))
        function = {"name": self._reader.calls[place].name, "arguments": arguments}
        return {"id": self._ids[place], "type": "function", "function": function}
