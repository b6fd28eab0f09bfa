"""Options of methods: what is accepted, in words and as a check."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.gates import GATES, is_gate

REQUIRED = object()
"""The default of an option that has none."""

TEMPLATE = "template"
"""The option that is text to read, and names nothing."""

NO_GUIDE = (TEMPLATE, "scorer")
"""Options that name no guide: a text to read, and what scores answers."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a method."""

    accepts: Callable[[object], bool]
    accepted: str
    """What is accepted, in words."""
    help: str
    default: object = REQUIRED


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_names(value: object) -> bool:
    """Whether a value is a mapping of names to names."""
    return isinstance(value, Mapping) and bool(value) and all(_is_name(k) and _is_name(v) for k, v in value.items())


def texts_of(value: Any) -> list[str]:
    """The texts of an option's value, in lists and mappings too."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_of(item)]
    return [value] if isinstance(value, str) else []


def path(help_text: str, default: object = REQUIRED) -> Option:
    """A path or a name."""
    return Option(_is_name, "a path or name", help_text, default)


def paths(help_text: str) -> Option:
    """Several paths, in order."""
    return Option(
        lambda value: isinstance(value, (list, tuple)) and bool(value) and all(map(_is_name, value)),
        "a list of paths",
        help_text,
    )


def names(help_text: str) -> Option:
    """Paths by name."""
    return Option(is_names, "a mapping of names to paths", help_text)


def text(accepted: str, help_text: str, default: object = REQUIRED) -> Option:
    """A text; `accepted` says of what kind."""
    return Option(_is_name, accepted, help_text, default)


def one_of(values: tuple[object, ...], help_text: str, default: object = REQUIRED) -> Option:
    """One of a few values."""
    return Option(lambda value: value in values, " or ".join(map(str, values)), help_text, default)


def count(help_text: str, default: int) -> Option:
    """A whole number of at least 1."""
    return Option(_is_count, "a whole number of at least 1", help_text, default)


def number(help_text: str, default: object = REQUIRED) -> Option:
    """A finite number."""
    return Option(is_number, "a finite number", help_text, default)


def number_between(low: float, high: float, help_text: str, default: float) -> Option:
    """A number from `low` to `high`, both accepted; `high` may be infinite."""
    bounds = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
    return Option(lambda value: is_number(value) and low <= _as_float(value) <= high, bounds, help_text, default)


def _as_float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


GATE = Option(
    is_gate,
    f"RULE:NUMBER, RULE one of {', '.join(GATES)}",
    "where the guide acts: entropy:T (the base's entropy above T nats), margin:M (its two best tokens less than M "
    "apart), random:R (a share R of the tokens), bet:L (where the base's draw is below the mix's best less L), or, of "
    "an agent, significance:A (where its verdict on the first candidate matters at least A times as much as lately)",
)
GUIDE_BASE = path("the model that it was trained on, where that is not the steered one (what its card says)", None)
GUIDE_BASES = Option(
    lambda value: _is_name(value) or is_names(value),
    "a model's name, or a mapping of guides to models",
    "the model that the guides were trained on, where that is not the steered one (what their cards say)",
    None,
)
REWARD = path("trajectory reward model: what `trimtab train reward` wrote, or a one-label classifier")
SENTENCE = path('a sentence, prompt:"TOWARDS"[/"AWAY"] or prompt:@FILE, or a directory with the card of one')
SCORER = path("sentiment, offence, a reward model's directory, or module:function")
SIGN = one_of((1, -1), "-1 where a lower score is better", 1)
TOP_K = count("candidates at each step", 10)
