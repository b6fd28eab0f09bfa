"""Flags that are made from fields keep their names, defaults, choices and what they accept.

`flags.txt` was written from the parsers as they stood before any flag was made from a field: one line for each flag,
its default, what it accepts of `PROBES` (or its choices), and the commands that have it. What the settings refused a
step later (a share of 1, a limit of 0) was taken off those lines: the flag refuses it now.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from trimtab.cli.main import build_parser

PROBES = (
    "-1",
    "-1e-9",
    "0",
    "1e-9",
    "0.5",
    "1",
    "1.5",
    "2",
    "3",
    "4",
    "1e39",
    str(2**63 - 1),
    str(2**63),
    "nan",
    "inf",
)
GROUPS = ("sampling", "training", "limits")
TABLE = Path(__file__).with_name("flags.txt")


def test_no_flag_has_changed() -> None:
    assert table(build_parser()) == TABLE.read_text(encoding="utf-8").splitlines()


def table(parser: argparse.ArgumentParser) -> list[str]:
    """The lines of `flags.txt`."""
    commands: dict[str, list[str]] = {}
    for command, line in _lines(parser, ""):
        commands.setdefault(line, []).append(command)
    return [f"{line} | {', '.join(found)}" for line, found in sorted(commands.items())]


def _lines(parser: argparse.ArgumentParser, command: str) -> Iterator[tuple[str, str]]:
    for group in parser._action_groups:
        if group.title in GROUPS:
            yield from ((command.strip(), _line(parser, action)) for action in group._group_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from _lines(inner, f"{command} {name}")


def _line(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    accepts = ",".join(map(str, action.choices)) if action.choices else ""
    if action.type is not None:
        accepts = " ".join(probe for probe in PROBES if _accepts(parser, action, probe))
    default = "" if action.default is None or action.default == [] else str(action.default)
    kind = type(action).__name__.strip("_").removesuffix("Action")
    return f"{action.option_strings[-1]} | {kind} {action.dest} | {default} | {accepts}"


def _accepts(parser: argparse.ArgumentParser, action: argparse.Action, text: str) -> bool:
    try:
        parser._get_value(action, text)
    except argparse.ArgumentError:
        return False
    return True
