"""Messages that name settings: by their fields in Python, by their flags where the command line speaks.

An error is raised with a template: "{max_length} is {0}" names the setting `max_length` and holds a value. Its text
names the field; the command line, which knows the flags, words it again (`renamed`).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import TypeVar

from trimtab.errors import TrimtabError

_Error = TypeVar("_Error", bound=TrimtabError)


def naming(kind: Callable[[str], _Error], template: str, *values: object) -> _Error:
    """An error whose message names settings: `{field}` is a setting's name, `{0}`, `{1:g}`, ... are the values."""
    error = kind(_filled(template, values, str))
    vars(error)["naming"] = (template, values)
    return error


def renamed(error: BaseException, name_of: Callable[[str], str]) -> str | None:
    """The message with each setting called `name_of(field)`; None for an error that names no settings."""
    if "naming" not in vars(error):
        return None
    template, values = vars(error)["naming"]
    return _filled(template, values, name_of)


def _filled(template: str, values: Sequence[object], name_of: Callable[[str], str]) -> str:
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name and not name.isdigit()}
    return template.format(*values, **{name: name_of(name) for name in fields})
