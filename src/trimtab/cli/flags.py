"""Flags made from the fields of a dataclass (`trimtab.fields`), and read back into it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from trimtab.errors import OptionError
from trimtab.fields import Described, shown, table

Settings = TypeVar("Settings")
Value = TypeVar("Value")


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """An argparse type that says what an OptionError of `parse` says; argparse would hide any other message."""

    def read(text: str) -> Value:
        try:
            return parse(text)
        except OptionError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def type_of(entry: Described) -> Callable[[str], object]:
    """An argparse type that reads what a field accepts."""
    return argument(entry.read)


def number_type(entry: Described) -> Callable[[str], float]:
    """`type_of` an entry that accepts numbers."""

    def parse(text: str) -> float:
        value = entry.read(text)
        assert isinstance(value, float)
        return value

    return argument(parse)


def whole_type(entry: Described) -> Callable[[str], int]:
    """`type_of` an entry that accepts whole numbers."""

    def parse(text: str) -> int:
        value = entry.read(text)
        assert isinstance(value, int)
        return value

    return argument(parse)


def add_fields(
    group: argparse._ActionsContainer, defaults: object, *, but: Collection[str] = (), may_be_unset: bool = False
) -> None:
    """A flag for each described field of `defaults`, which holds what applies where a flag is not given.

    With `may_be_unset` a flag that is not given reads as None, for commands that look elsewhere first.
    """
    for name, entry in table(type(defaults)).items():
        if name not in but:
            action = _add(group, name, entry, getattr(defaults, name))
            action.default = None if may_be_unset else action.default


def read_fields(kind: type[Settings], args: argparse.Namespace, *, but: Collection[str] = ()) -> Settings:
    """The settings that the flags of `add_fields` ask for; those in `but` have their defaults."""
    make: Callable[..., Settings] = kind
    return make(**{name: _value(args, name, entry) for name, entry in table(kind).items() if name not in but})


def _value(args: argparse.Namespace, name: str, entry: Described) -> object:
    value = getattr(args, name)
    return tuple(value) if entry.kind == "texts" else value


def _add(group: argparse._ActionsContainer, name: str, entry: Described, default: object) -> argparse.Action:
    if entry.kind == "flag":
        flag = written_flag(name, entry, default)
        text = _percent(entry.off if default else entry.sentence(flag_of))
        return group.add_argument(flag, dest=name, action="store_false" if default else "store_true", help=text)
    text, metavar = help_of(entry, default), metavar_of(entry)
    if entry.kind == "choice":
        return group.add_argument(flag_of(name), choices=entry.choices, default=default, help=text)
    if entry.kind == "texts":
        return group.add_argument(flag_of(name), action="append", default=[], metavar=metavar, help=text)
    action: type[argparse.Action] | str = Once if entry.kind in ("ids", "biases", "shares", "named") else "store"
    return group.add_argument(
        flag_of(name), type=type_of(entry), default=default, metavar=metavar, help=text, action=action
    )


class Once(argparse.Action):
    """A flag whose value is a list or a mapping; given again it is refused, since the first would be lost."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        if getattr(namespace, self.dest) is not self.default:
            raise argparse.ArgumentError(self, f"it is given twice; write all in one, as {self.metavar}")
        setattr(namespace, self.dest, values)


def written_flag(name: str, entry: Described, default: object) -> str:
    """The flag that sets a field; `--no-NAME` for one that is on unless it is refused."""
    return f"--no-{name.replace('_', '-')}" if entry.kind == "flag" and default else flag_of(name)


def metavar_of(entry: Described) -> str:
    """What stands for the flag's value in its help."""
    kinds = {"whole": "N", "number": "X", "names": "NAME,NAME,...", "texts": "TEXT"}
    return entry.metavar or kinds.get(entry.kind, "")


def help_of(entry: Described, default: object) -> str:
    """The sentence, with what applies where the flag is not given."""
    without = entry.unset or shown(default)
    ending = f" ({without})" if without else ""
    return _percent(f"{entry.sentence(flag_of)}{ending}")


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def rows(defaults: object, *, but: Collection[str] = ()) -> Iterator[tuple[str, str, str]]:
    """(flag, default, meaning) of each flag of `add_fields`, as a page in Markdown writes them."""
    for name, entry in table(type(defaults)).items():
        if name in but:
            continue
        default = getattr(defaults, name)
        flag = f"{written_flag(name, entry, default)} {metavar_of(entry)}".strip()
        meaning = entry.off if entry.kind == "flag" and default else entry.sentence(lambda one: f"`{flag_of(one)}`")
        are_named = all(choice in meaning for choice in entry.choices)
        choices = "" if are_named else f": {', '.join(f'`{choice}`' for choice in entry.choices)}"
        yield f"`{flag}`", entry.unset or shown(default), meaning + choices
