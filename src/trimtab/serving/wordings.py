"""The validator's problems with a value in words: the value, and all that is accepted there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.fields import Described, table
from trimtab.params import SamplingParams

MOST_QUOTED = 64
"""Characters of what a client sent that stand in a message."""

_KINDS: Mapping[str, str] = {
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
}
"""Kind of a validator's problem -> what it wants."""
_NUMBERS = ("float_type", "finite_number", "int_type", "int_from_float")
_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "of at most"),
}
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""What requests call `max_new_tokens`."""


def wanted(problem: Mapping[str, Any], place: Sequence[str]) -> str | None:
    """What is accepted at a place, to stand after "give"; None for a problem that is worded by itself."""
    kind, context, message = str(problem["type"]), problem.get("ctx", {}), str(problem["msg"])
    entry = _entry(place)
    if entry is not None and kind in (*_NUMBERS, *_BOUNDS) and _is_its(context, entry):
        return f"a {'whole ' if entry.kind == 'whole' else ''}number{entry.bounds}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"a whole number {words} {context[name]:g}"
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "too_long":
        return f"at most {context['max_length']} items"
    if kind == "too_short":
        return f"at least {context['min_length']} item{'' if context['min_length'] == 1 else 's'}"
    return message.removeprefix("give ") if message.startswith("give ") else _KINDS.get(kind)


def _entry(place: Sequence[str]) -> Described | None:
    """The sampling parameter whose number stands at a place, by itself or in a mapping."""
    inside = place[1:] if place[:1] == ["guidance"] else place
    if not inside:
        return None
    found = table(SamplingParams).get("max_new_tokens" if inside[0] in _LENGTHS else inside[0])
    kinds = {1: ("number", "whole"), 2: ("biases", "shares")}.get(len(inside), ())
    return found if found is not None and found.kind in kinds else None


def _is_its(context: Mapping[str, Any], entry: Described) -> bool:
    """Whether a bound that is named is the parameter's own; an endpoint may have another."""
    bounds = [context[name] for name, _ in _BOUNDS.values() if name in context]
    return all(bound in (entry.low, entry.high) for bound in bounds)


def shown(value: Any) -> str:
    """A value for a message, cut."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return f'"{cut(value)}"' if isinstance(value, str) else cut(json.dumps(value))


def cut(text: str, most: int = MOST_QUOTED) -> str:
    """A text of at most `most` characters: its beginning, its end, and how much is left out between them."""
    if len(text) <= most:
        return text
    end = most // 4
    gap = f" […{len(text) - most} characters…] "
    return text[: max(0, most - end - len(gap))] + gap + text[len(text) - end :]
