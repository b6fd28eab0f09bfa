"""A dataclass as its own table: what each field accepts, and one sentence about it, said once.

`described` declares a field. From what it says come the check of a value (`check`), a command-line flag
(`trimtab.cli.flags`), a key of a recipe, the wire's bounds and description, and the rows of docs/reference/cli.md.
Pure: this knows nothing of any of them.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Literal, TypeAlias, TypeGuard, TypeVar

from trimtab.errors import OptionError, naming

Kind: TypeAlias = Literal[
    "number", "whole", "flag", "choice", "text", "names", "texts", "ids", "biases", "shares", "named"
]
"""`text` is one text; `names` is a list that is written as one text, with commas; `texts` a list of texts that may hold
commas; `ids` a list of token ids, written with commas; `biases` a mapping from token ids to numbers in the range,
written `ID=X,ID=X`; `shares` is one from names, written `NAME=X,NAME=X`, and `named` one from names to texts."""

MAX_SEED = 2**63 - 1

T = TypeVar("T")
_KEY = "trimtab"


class Follows(int):
    """A number that nobody set: it follows from other settings, in every copy of them anew."""


class FollowsReal(float):
    """The same, of a number that need not be whole."""


FOLLOWS = Follows(0)
"""The default of a setting that follows others."""
FOLLOWS_REAL = FollowsReal(0.0)
"""The same, of a number that need not be whole."""


def follow(settings: object, name: str, value: Callable[[], float]) -> None:
    """Give a setting that nobody set its value."""
    now = getattr(settings, name)
    if isinstance(now, Follows | FollowsReal):
        made = Follows(value()) if isinstance(now, Follows) else FollowsReal(value())
        object.__setattr__(settings, name, made)  # in __post_init__ of a frozen class


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What one field accepts, and what a person reads about it."""

    kind: Kind
    text: str = ""
    """One sentence or a part of one; `{name}` stands for another setting, which each place calls in its own way."""
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    """Whether `low` itself is left out."""
    open_high: bool = False
    choices: tuple[str, ...] = ()
    note: str = ""
    """What one of the accepted values means, such as `0: all`."""
    unset: str = ""
    """What holds where nobody sets the field and its default does not say."""
    off: str = ""
    """What a flag that is on unless it is refused does when it is refused."""
    metavar: str = ""
    """The letter or name that stands for the value; given by the kind where it is left out."""
    optional: bool = False
    """Whether None is accepted too."""

    def accepts(self, value: object) -> bool:
        """Whether a field may hold this value. Truth values are not numbers."""
        if value is None:
            return self.optional
        if self.kind == "number":
            return is_number(value) and self._within(value)
        if self.kind == "whole":
            return is_whole(value) and self._within(value)
        if self.kind == "choice":
            return value in self.choices
        if self.kind == "text":
            return isinstance(value, str) and bool(value)
        if self.kind == "ids":
            return not isinstance(value, str) and isinstance(value, Sequence) and all(map(_is_id, value))
        if self.kind == "biases":
            return isinstance(value, Mapping) and all(
                _is_id(token) and is_number(bias) and self._within(bias) for token, bias in value.items()
            )
        if self.kind == "shares":
            return isinstance(value, Mapping) and all(
                isinstance(name, str) and name and is_number(one) and self._within(one) for name, one in value.items()
            )
        if self.kind == "named":
            return isinstance(value, Mapping) and all(
                isinstance(part, str) and part for pair in value.items() for part in pair
            )
        if self.kind in ("names", "texts"):
            return not isinstance(value, str) and isinstance(value, Sequence) and all(map(self._is_text, value))
        return True

    def _is_text(self, value: object) -> bool:
        return isinstance(value, str) and bool(value or self.kind == "names")

    def _within(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def accepted(self, *, finite: bool = True) -> str:
        """What is accepted, to stand after "give"; `finite` says that infinity and NaN are not numbers here."""
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        if self.kind == "text":
            return "a non-empty string"
        if self.kind == "texts":
            return "non-empty strings in a tuple"
        if self.kind == "names":
            return "names in a tuple"
        if self.kind == "ids":
            return "token ids in a tuple"
        if self.kind == "biases":
            return f"a mapping from token ids to finite numbers{self.bounds}"
        if self.kind == "shares":
            return f"a mapping from names to finite numbers{self.bounds}"
        if self.kind == "named":
            return "a mapping from names to non-empty strings"
        if self.kind == "flag":
            return "true or false"
        adjective = "whole " if self.kind == "whole" else "finite " if finite else ""
        return f"a {adjective}number{self.bounds}"

    @property
    def bounds(self) -> str:
        """The range in words, with a space before it; empty where every number is accepted."""
        words = []
        if self.low > -math.inf:
            words.append(f"{'above' if self.open_low else 'of at least'} {shown(self.low)}")
        if self.high < math.inf:
            words.append(f"{'below' if self.open_high else 'at most'} {shown(self.high)}")
        return f" {' and '.join(words)}" if words else ""

    def read(self, text: str) -> object:
        """The value that a text says. Raises OptionError for a text that says none that is accepted."""
        value: object = text
        try:
            if self.kind == "whole":
                value = int(text)
            elif self.kind == "number":
                value = float(text)
            elif self.kind == "names":
                value = tuple(text.split(","))
            elif self.kind == "ids":
                value = tuple(map(int, text.split(",")))
            elif self.kind == "biases":
                value = {int(token): bias for token, bias in _mapping(text).items()}
            elif self.kind == "shares":
                value = _mapping(text)
            elif self.kind == "named":
                value = dict(_named(text))
        except ValueError:
            value = None
        if value is None or not self.accepts(value):
            written = {
                "ids": "token ids, as ID,ID,...",
                "biases": f"numbers for token ids, as ID=X,ID=X,..., X{self.bounds}",
                "shares": f"numbers for names, as NAME=X,NAME=X,..., X{self.bounds}",
                "named": f"texts for names, as {self.metavar}",
            }
            raise OptionError(f"{text!r} is not accepted; give {ended(written.get(self.kind, self.accepted()))}")
        return value

    def sentence(self, name_of: Callable[[str], str] = str) -> str:
        """The text and the note, other settings called `name_of(field)`."""
        return filled("; ".join(part for part in (self.text, self.note) if part), name_of)


def described(
    default: T,
    text: str,
    *,
    kind: Kind | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    note: str = "",
    unset: str = "",
    off: str = "",
    metavar: str = "",
) -> T:
    """A field of a dataclass with its default, and what `Described` says of it.

    `low` and `high` are themselves accepted, `above` and `below` are not. The kind is read off the default where it is
    not given, and None is accepted where it is the default.
    """
    entry = Described(
        kind=kind or ("choice" if choices else _kind_of(default)),
        text=text,
        low=low if low is not None else above if above is not None else -math.inf,
        open_low=low is None and above is not None,
        high=high if high is not None else below if below is not None else math.inf,
        open_high=high is None and below is not None,
        choices=tuple(choices),
        note=note,
        unset=unset,
        off=off,
        metavar=metavar,
        optional=default is None,
    )
    if isinstance(default, dict):  # no two objects share one
        fresh: T = dataclasses.field(default_factory=default.copy, metadata={_KEY: entry})  # type: ignore[assignment]
        return fresh
    field: T = dataclasses.field(default=default, metadata={_KEY: entry})
    return field


def seed_field(default: T, text: str, *, unset: str = "") -> T:
    """The field of a seed."""
    return described(default, text, kind="whole", low=0, high=MAX_SEED, unset=unset)


def _kind_of(default: object) -> Kind:
    if isinstance(default, bool):
        return "flag"
    if isinstance(default, int):
        return "whole"
    if isinstance(default, float):
        return "number"
    if isinstance(default, tuple):
        return "names"
    raise TypeError(f"the kind of a field whose default is {default!r} must be given")


def table(holder: type) -> Mapping[str, Described]:
    """Name -> what is said of a dataclass's field; what a class says itself stands before what its parents say."""
    return _table(holder)


@cache
def _table(holder: type) -> Mapping[str, Described]:
    entries = {field.name: field.metadata.get(_KEY) for field in dataclasses.fields(holder)}
    ordered: dict[str, Described] = {}
    for cls in holder.__mro__:
        for name in inspect.get_annotations(cls):
            entry = entries.get(name)
            if isinstance(entry, Described) and name not in ordered:
                ordered[name] = entry
    return ordered


def check(settings: object) -> None:
    """Raise OptionError for the first described field that holds what it does not accept.

    A number that nobody set (`Follows`, `FollowsReal`) is not looked at.
    """
    for name, entry in table(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, Follows | FollowsReal) or entry.accepts(value):
            continue
        if entry.kind == "choice":
            raise naming(OptionError, f"{{{name}}} is {{0!r}}; accepted: {', '.join(entry.choices)}.", value)
        note = f" ({entry.note})" if entry.note else ""
        is_infinite = isinstance(value, float) and not math.isfinite(value)
        raise naming(OptionError, f"{{{name}}} is {{0!r}}; give {entry.accepted(finite=is_infinite)}{note}.", value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a finite real number, truth values left out."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def is_whole(value: object) -> TypeGuard[int]:
    """Whether this is a whole number, truth values left out."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_id(value: object) -> bool:
    return is_whole(value) and value >= 0


def _mapping(text: str) -> dict[str, float]:
    """`NAME=X,NAME=X` as a mapping. Raises ValueError for another text, and for a name that is there twice."""
    return {name: float(number) for name, number in _named(text).items()}


def _named(text: str) -> dict[str, str]:
    """`NAME=TEXT,NAME=TEXT` as a mapping. Raises ValueError for a name that is there twice."""
    pairs = [part.rpartition("=") for part in text.split(",")]
    found = {name.strip(): value.strip() for name, _, value in pairs}
    if len(found) < len(pairs):
        raise ValueError(text)
    return found


def shown(value: object) -> str:
    """A value as a person writes it."""
    if isinstance(value, bool | None):
        return ""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={shown(one)}" for name, one in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def ended(sentence: str) -> str:
    """A sentence with its full stop, which three dots at its end already are."""
    return sentence if sentence.endswith(".") else f"{sentence}."


def filled(text: str, name_of: Callable[[str], str]) -> str:
    """A text whose `{name}` are replaced by `name_of(name)`."""
    names = {name for _, name, _, _ in string.Formatter().parse(text) if name}
    return text.format(**{name: name_of(name) for name in names})
