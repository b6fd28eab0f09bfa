"""Flags about chat templates: what a prompt of plain text is, and what the template is told."""

from __future__ import annotations

import argparse
import json
from typing import Any

from trimtab.errors import OptionError

_WORDS = {"true": True, "false": False, "null": None, "none": None}


def add_template_options(parser: argparse.ArgumentParser) -> None:
    """--chat and --raw: what a prompt of plain text is; and --template-option."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--chat", dest="template", action="store_const", const="chat", help="text is a user's message")
    group.add_argument(
        "--raw", dest="template", action="store_const", const="raw", help="text is continued as it stands"
    )
    parser.set_defaults(template="auto")
    add_template_option(parser)


def add_template_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--template-option."""
    parser.add_argument(
        "--template-option",
        dest="template_options",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=VALUE",
        help="told to the chat template, such as enable_thinking=false: a JSON value or a text; repeat for several",
    )


def add_ignored_columns(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--ignore-column."""
    parser.add_argument(
        "--ignore-column",
        dest="ignore_columns",
        action="append",
        default=[],
        metavar="NAME",
        help="read rows as if they had no such column; repeat for several",
    )


def template_options(args: argparse.Namespace) -> dict[str, Any]:
    """What --template-option says. Raises OptionError for a name that is given twice, and beside --raw."""
    found: dict[str, Any] = {}
    for name, value in args.template_options:
        if name in found:
            raise OptionError(f"--template-option {name} is given twice; give it once.")
        found[name] = value
    if found and getattr(args, "template", None) == "raw":
        raise OptionError("--template-option is for the chat template, which --raw leaves out; give one of them.")
    return found


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an option; give NAME=VALUE, for example enable_thinking=false"
        )
    if value.lower() in _WORDS:
        return name, _WORDS[value.lower()]
    try:
        return name, json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return name, value


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
