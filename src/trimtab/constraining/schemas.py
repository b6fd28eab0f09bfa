"""JSON schemas as a grammar takes them: how much white space their JSON may have, how deep they may go."""

from __future__ import annotations

from trimtab.errors import OptionError

BLANK = r"(\x20|\x0A\x20{0,40})?"
"""White space between the parts of JSON: nothing, a blank, or a new line with its indentation; a model could go on with
any amount for ever."""
_DEEPEST = 100
"""Levels of a schema."""


def with_blanks(schema: object) -> object:
    """A schema that says what white space its JSON may have, where it does not say so itself (`x-guidance`).

    Raises OptionError for one that is nested too deeply.
    """
    if _depth(schema) > _DEEPEST:
        raise OptionError(f"The JSON schema is nested more than {_DEEPEST} levels deep. Make it flatter.")
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        return schema
    asked = schema.get("x-guidance", {})
    if not isinstance(asked, dict) or {"whitespace_flexible", "whitespace_pattern"} & set(asked):
        return schema
    return {**schema, "x-guidance": {"whitespace_pattern": BLANK, **asked}}


def _depth(value: object) -> int:
    """How deeply objects and lists are nested."""
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
        if depth > _DEEPEST:
            break
    return depth
