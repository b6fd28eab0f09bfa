"""Calls of functions as a Lark grammar: text up to the mark of a call, then calls as the model writes them.

A text ends at the first mark in it (a lazy lexeme), so whatever has the mark goes on as a call. The arguments are JSON
of the called function's schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.calls import CALL_ID, WHITE, CallFormat, Part
from trimtab.constraining.schemas import with_blanks
from trimtab.errors import OptionError

_TEXT = r"(.|\n)*"


def arguments_schema(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object; None: it takes none.

    Raises OptionError for one that admits no object.
    """
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise OptionError(f"Arguments are a JSON object, and their schema has the type {kind!r:.60}; give 'object'.")
    return {**parameters, "type": "object"}


def lark_of_calls(value: Mapping[str, Any], *, any_model: bool = False) -> str:
    """The grammar of `Constraint.calls`, from its value. `any_model`: without the ids of a model's tokens.

    Raises OptionError for a schema that cannot be one of arguments.
    """
    written = CallFormat.from_json(value["format"])

    def spelled(parts: Sequence[Part]) -> str:
        return " ".join(_part(part, any_model=any_model) for part in parts if part != "")

    rules = []
    for number, function in enumerate(value["functions"]):
        schema = json.dumps(with_blanks(arguments_schema(function["parameters"])))
        name = _part(function["name"])
        rules.append(f"call_{number}: {name} {spelled(written.between)} arguments_{number}")
        rules.append(f"arguments_{number}: %json {schema}")
    choices = " | ".join(f"call_{number}" for number in range(len(value["functions"])))
    more = f" ({spelled(written.joint)} call)*" if written.joint is not None and value["several"] else ""
    rules.append(f"call: {choices}")
    rules.append(f"calls: call{more} {spelled(written.ending)}")
    behind = spelled(_behind_mark(written))
    is_text = isinstance(written.mark, str) or any_model
    rules.append(f"marked{'[lazy]' if is_text else ''}: TEXT {_part(written.mark, any_model=any_model)}")
    rules.append(f"TEXT: /{_TEXT}/")
    rules.append(f"called_after: marked {behind} calls")
    rules.append(f"called: {spelled(written.opening)} calls")
    return "\n".join([*rules, *_start(value, written)])


def _start(value: Mapping[str, Any], written: CallFormat) -> list[str]:
    """What an answer may be."""
    if value["required"]:
        if written.follows_text:
            return ["start: called_after"]
        return [f"start: {_part(written.lead) if written.lead else ''} called"]
    if value["form"] is not None:
        return ["start: form | called", f"form: %json {json.dumps(with_blanks(value['form']))}"]
    if written.is_anywhere:
        return ["start: text | called_after", "text: TEXT"]
    mark, white = re.escape(str(written.mark)), WHITE.encode("unicode_escape").decode()
    return ["start: text | called", "text: OTHER", f"OTHER: /([{white}]*[^{white}{mark}]{_TEXT})?|[{white}]+/"]


def _behind_mark(written: CallFormat) -> Sequence[Part]:
    """The opening without the mark that it begins with."""
    first, *others = written.opening
    if first == written.mark or not isinstance(first, str):
        return others
    return [first[len(str(written.mark)) :], *others]


def _part(part: Part, *, any_model: bool = False) -> str:
    """A part as the grammar writes it."""
    if part is None:
        return f"/{CALL_ID}/"
    if isinstance(part, int):
        return json.dumps(f"<[{part}]>") if any_model else f"<[{part}]>"
    return json.dumps(part, ensure_ascii=False)
