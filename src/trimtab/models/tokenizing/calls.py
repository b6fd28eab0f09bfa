"""How a model writes calls of tools, found by having its chat template write some.

A template is shown answers that call made-up functions, and what it writes around their names and arguments is the
format. Nothing is guessed: the format has to give back what the template writes for other names and arguments too, or
it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.calls import CALL_ID, NAME, WHITE, CallFormat, Part, Spelled
from trimtab.core import Message
from trimtab.errors import PromptError
from trimtab.models.tokenizing.templates import MARK, reads_option, render

_ASKED: Message = {"role": "user", "content": "TrimtabAsks"}
_CALLS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("TrimtabLook", "TrimTabL1", {"TrimtabWhere": "TrimtabHere"}),
    ("TrimtabFind", "TrimTabF2", {"TrimtabWhat": "TrimtabThis"}),
    ("Trimtab_try-3", "TrimTabT3", {"TrimtabHow": 'é <&> "\\\n', "n": [1, 2.5, True, None, {"a": {}}], "b": {}}),
)
"""Name, id and arguments of calls; the last is one whose arguments JSON alone writes."""
_TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}},
    }
    for name, _, _ in _CALLS
]
_TELLING = re.compile(r"[<>\[\]{}|`]")
"""A mark has one of these, so that no word of a text is taken for it."""
_JSON = re.compile(r"\[?\s*\{")

Made = tuple[str, str, Mapping[str, Any]]


class CallTemplate:
    """One chat template, asked for calls. `silent`: tokens that add no text, by the text that names them."""

    def __init__(self, hf: Any, options: Mapping[str, Any], *, silent: Mapping[str, int], end_texts: Iterable[str]):
        self._hf = hf
        self._options = options
        self._silent = silent
        self._end_texts = tuple(end_texts)

    def written(self) -> CallFormat:
        """The format of calls. Raises PromptError where it cannot be found, with why."""
        if not reads_option(self._hf, "tools", {"tools": _TOOLS}):
            raise PromptError(
                "The model's chat template never reads tools, so the model would not know of them. Leave tools out, or "
                "use a model whose template has them."
            )
        first, second, third = _CALLS
        begun, follows_text = self._begun()
        body = self._body(begun, [first])
        lead = body[: len(body) - len(body.lstrip(WHITE))]
        opening, between, ending = self._parts(body[len(lead) :], first)
        joint = self._joint(begun)
        found = [self._spelled(text) for text in (opening, between, ending)]
        mark, is_anywhere = self._mark(found[0])
        if follows_text and not is_anywhere:
            raise _unknown("it opens a thought before an answer, and nothing marks where a call begins behind it")
        written = CallFormat(
            lead=lead,
            opening=found[0],
            between=found[1],
            joint=None if joint is None else self._spelled(joint),
            ending=found[2],
            mark=mark,
            is_anywhere=is_anywhere,
            follows_text=follows_text,
        )
        self._check(written, begun, [[third]] if joint is None else [[third], [second, third, first]])
        return written

    def _begun(self) -> tuple[str, bool]:
        """The text up to an assistant's words, and whether a prompt leaves more open before them (a thought)."""
        opened = self._render([_ASKED], opened=True)
        said = self._render([_ASKED, {"role": "assistant", "content": MARK}], opened=False)
        before, mark, _ = said.rpartition(MARK)
        called = self._render([_ASKED, _message(_CALLS[:1])], opened=False)
        for text in sorted({before, opened} if mark else {opened}, key=len, reverse=True):
            if called.startswith(text):
                return text, not (text.startswith(opened) or opened == text)
        raise _unknown("it does not write a call behind the prompt that it opens for an answer")

    def _body(self, begun: str, calls: Sequence[Made]) -> str:
        """What an answer that makes these calls is, up to the end of its turn."""
        text = self._render([_ASKED, _message(calls)], opened=False)
        if not text.startswith(begun):
            raise _unknown("what stands before a call depends on the call")
        body = text[len(begun) :]
        after = _json_place(body, calls[-1][2])[1]
        ends = [at for end in self._end_texts if (at := body.find(end, after)) >= 0]
        if ends:
            return body[: min(ends)]
        said = self._render([_ASKED, {"role": "assistant", "content": MARK}], opened=False).rpartition(MARK)[2]
        return body.removesuffix(said)

    def _parts(self, body: str, call: Made) -> tuple[str, str, str]:
        """What stands before the name, between name and arguments, and behind the arguments."""
        name, _, arguments = call
        at = body.find(name)
        if at < 0 or body.count(name) > 1:
            raise _unknown("it does not write a call's name once")
        start, end = _json_place(body, arguments)
        if start < at:
            raise _unknown("it writes the arguments in front of the name")
        return body[:at], body[at + len(name) : start], body[end:]

    def _joint(self, begun: str) -> str | None:
        """What stands between two calls; None where the template writes one at a time."""
        one, other = _CALLS[:2]
        try:
            body = self._body(begun, [one, other])
        except PromptError:
            return None
        start = _json_place(body, one[2])[1]
        end = body.find(other[0], start)
        return None if end < 0 else body[start:end]

    def _spelled(self, text: str) -> Spelled:
        """A text with its tokens that add no text by their ids, and without the calls' own ids."""
        marks = sorted(self._silent, key=len, reverse=True)
        ids = "|".join(call_id for _, call_id, _ in _CALLS)
        pieces = re.split(f"({'|'.join([ids, *map(re.escape, marks)])})", text)
        known: list[Part] = []
        for number, piece in enumerate(pieces):
            if number % 2:
                known.append(self._silent.get(piece))
            elif piece:
                known.append(piece)
        return tuple(known)

    def _mark(self, opening: Spelled) -> tuple[str | int, bool]:
        """What opens a call, and whether it does so behind a text too."""
        if not opening or opening[0] is None:
            raise _unknown("a call begins with its name or its id, and nothing marks it")
        first = opening[0]
        if isinstance(first, int):
            return first, True
        added = [token.content for token in self._hf.added_tokens_decoder.values() if first.startswith(token.content)]
        if added:
            return max(added, key=len), True
        found = _JSON.search(first)
        mark = (first if found is None else first[: found.start()]).rstrip(WHITE)
        if not mark:
            return first[0], False
        if not _TELLING.search(mark):
            raise _unknown(f"a call begins with {mark!r}, which a text may hold as well")
        return mark, True

    def _check(self, written: CallFormat, begun: str, tried: Sequence[Sequence[Made]]) -> None:
        """Raise PromptError unless the format gives what the template writes, for other calls too."""
        next_part = written.between[0] if written.between else None
        if next_part is None or (isinstance(next_part, str) and re.match(NAME, next_part)):
            raise _unknown("nothing separates a call's name from what follows it")
        for calls in tried:
            body = self._body(begun, calls)
            for number, call in enumerate(calls):
                start, end = _json_place(body, call[2])
                before = (written.joint or ()) if number else (written.lead, *written.opening)
                if not re.fullmatch(self._pattern((*before, call[0], *written.between)), body[:start]):
                    raise _unknown("what it writes around a call depends on the call")
                body = body[end:]
            if not re.fullmatch(self._pattern(written.ending), body):
                raise _unknown("what it writes behind a call depends on the call")

    def _pattern(self, parts: Spelled) -> str:
        """A regular expression of what the template writes for parts."""
        names = {token_id: text for text, token_id in self._silent.items()}
        texts = (
            CALL_ID if part is None else re.escape(names[part] if isinstance(part, int) else part) for part in parts
        )
        return "".join(texts)

    def _render(self, messages: Sequence[Message], *, opened: bool) -> str:
        return render(self._hf, messages, options={**self._options, "tools": _TOOLS}, opened=opened)


def _message(calls: Sequence[Made]) -> Message:
    made = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        for name, call_id, arguments in calls
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def _json_place(body: str, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Where the arguments stand as JSON. Raises PromptError where they do not."""
    at = body.find(json.dumps(next(iter(arguments))))
    start = body.rfind("{", 0, at) if at >= 0 else -1
    try:
        value, end = json.JSONDecoder().raw_decode(body, start) if start >= 0 else (None, 0)
    except ValueError:
        value, end = None, 0
    if value != dict(arguments):
        raise _unknown("it does not write a call's arguments as a JSON object")
    return start, end


def _unknown(why: str) -> PromptError:
    return PromptError(
        f"How the model writes a call of a tool cannot be found from its chat template: {why}. Leave tools out, or use "
        "a model whose template writes a call's name and then its arguments as JSON."
    )
