"""Single values of a recipe: what each accepts, and the sentence for what it does not."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.documents import quoted
from trimtab.errors import OptionError, unknown_name
from trimtab.fields import Described
from trimtab.methods.method import Strength

MAX_SEED = 2**40
MAX_NAME = 96
"""Letters of a name: what a line of a figure's legend holds."""
_NOT_IN_A_NAME = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode: control characters, halves of surrogate pairs, ends of lines and paragraphs."""


def kind(value: Any) -> str:
    """What a value is, for a person."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return quoted(value) if isinstance(value, str) else repr(value)


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise OptionError(f"is {kind(value)}; give text.")
    return value


def name(value: Any) -> str:
    """One line of text: what tables, figures and files can show."""
    found = text(value)
    if any(unicodedata.category(letter) in _NOT_IN_A_NAME for letter in found):
        raise OptionError(f"is {kind(value)}; give a name of one line, without tabs and other control characters.")
    if len(found) > MAX_NAME:
        raise OptionError(f"has {len(found)} letters; give a name of at most {MAX_NAME}.")
    return found


def texts(value: Any) -> tuple[str, ...]:
    """One text or a list of them."""
    return tuple(text(item) for item in (value if isinstance(value, list) else [value]))


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"is {kind(value)}; give true or false.")
    return value


def options(value: Any) -> dict[str, Any]:
    """What a chat template is told: names, and values that JSON can say."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in value):
        raise OptionError(f"is {kind(value)}; give a mapping of options, such as enable_thinking: false.")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"holds a value that is no JSON ({error}); give texts, numbers, true, false or lists."
        ) from None
    return dict(value)


def number(low: float = -math.inf) -> Callable[[Any], float]:
    """A finite number of at least `low`. YAML takes `1e-3` for text; we take it for the number it is."""

    def read(value: Any) -> float:
        try:
            found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and found >= low):
            least = "" if low == -math.inf else f" of at least {low:g}"
            raise OptionError(f"is {kind(value)}; give a finite number{least}.")
        return found

    return read


def whole(low: int, high: int | None = None) -> Callable[[Any], int]:
    """A whole number of at least `low`, at most `high`."""

    def read(value: Any) -> int:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        if not good or (high is not None and value > high):
            most = "" if high is None else f" and at most {high}"
            raise OptionError(f"is {kind(value)}; give a whole number of at least {low}{most}.")
        return int(value)

    return read


def of_field(entry: Described) -> Callable[[Any], object]:
    """A value of the kind that a field of a dataclass holds; its whole range is for the dataclass to check."""
    if entry.kind == "flag":
        return flag
    if entry.kind == "texts":
        return texts
    if entry.kind == "ids":
        return _token_ids
    if entry.kind == "biases":
        return _biases
    return whole(int(entry.low)) if entry.kind == "whole" else number(entry.low)


def _token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise OptionError(f"is {kind(value)}; give a list of token ids.")
    return tuple(map(whole(0), value))


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping) or not all(str(token).isdecimal() for token in value):
        raise OptionError(f"is {kind(value)}; give a mapping from token ids to numbers, such as {{50: -100}}.")
    bias = number()
    return {int(token): bias(one) for token, one in value.items()}


def one_of(what: str, accepted: Sequence[str]) -> Callable[[Any], str]:
    """One of a few names."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in accepted:
            raise unknown_name(what, str(value), accepted)
        return value

    return read


def seeds(value: Any) -> tuple[int, ...]:
    """One seed, or a list of different ones."""
    items = value if isinstance(value, list) else [value]
    found = tuple(whole(0, MAX_SEED)(item) for item in items)
    if not found or len(set(found)) < len(found):
        raise OptionError("is empty or names a seed twice; give a list of different whole numbers, such as [0, 1, 2].")
    return found


def strengths(value: Any) -> tuple[Strength, ...]:
    """A list of different strengths: numbers, or lists with one number an objective."""
    if not isinstance(value, list) or not value:
        raise OptionError(f"is {kind(value)}; give a list such as [0.5, 1, 2], or [[1, 0], [0, 1]] for several guides.")
    read = number()
    found = tuple(tuple(map(read, item)) if isinstance(item, list) else read(item) for item in value)
    if any(item == () for item in found):
        raise OptionError("has an empty list among its strengths; give one number for each objective.")
    if len(set(found)) < len(found):
        raise OptionError("names a strength twice; give each once.")
    return found


def names(what: str, accepted: Sequence[str], *, most: int) -> Callable[[Any], tuple[str, ...]]:
    """At most so many different known names, in a list."""

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= most or len(set(map(str, value))) < len(value):
            raise OptionError(f"is {kind(value)}; give a list of one to {most} different names of {what}s.")
        for item in value:
            if item not in accepted:
                raise unknown_name(what, str(item), accepted)
        return tuple(value)

    return read
