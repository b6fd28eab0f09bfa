"""Flags that are made from fields keep their names, defaults, choices and what they accept.

`flags.txt` was written from the parsers as they stood before any flag was made from a field: one line for each flag,
its default, what it accepts of `PROBES` (or its choices), and the commands that have it. What the settings refused a
step later (a share of 1, a limit of 0) was taken off those lines: the flag refuses it now.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from trimtab.cli.main import build_parser
from trimtab.errors import OptionError

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


WRONG = ("28,x", "x=y,z", "a=1,b", "1:,", "", "nope", "-", "1e999", "{")
_DOTS = re.compile(r"\.+")


def test_what_a_flag_does_not_accept_ends_in_one_sentence() -> None:
    """The dots of what is accepted (ID,ID,...) are neither eaten nor doubled by the full stop behind it."""
    seen = 0
    parser = build_parser()
    for flags in _options(parser):
        for name, action in flags.items():
            for text in WRONG if callable(action.type) else ():
                try:
                    action.type(text)
                except (argparse.ArgumentTypeError, OptionError) as error:
                    said = _said(parser, action, str(error))
                    runs = {len(run) for run in _DOTS.findall(said)}
                    assert runs <= {1, 3}, f"{name}: {said}"
                    assert not re.search(r"[ ,;:]\.(?!\.)", said), f"{name}: {said}"
                    assert re.search(r"[^.]\. See: trimtab|\.\.\. See: trimtab", said), f"{name}: {said}"
                    seen += 1
    assert seen > 100


def _said(parser: argparse.ArgumentParser, action: argparse.Action, problem: str) -> str:
    """What stands on the terminal."""
    with pytest.raises(OptionError) as caught:
        parser.error(str(argparse.ArgumentError(action, problem)))
    return str(caught.value)


def _options(parser: argparse.ArgumentParser) -> Iterator[dict[str, argparse.Action]]:
    yield {name: action for action in parser._actions for name in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)


def test_a_list_of_ids_says_how_it_is_written(run: Run) -> None:
    outcome = run("generate", "--model", "demo", "--prompt", "a", "--stop-token-ids", "28,x")
    assert outcome.code == 2
    assert (
        "argument --stop-token-ids: '28,x' is not accepted; give token ids, as ID,ID,... See: trimtab gen"
        in outcome.err
    )
