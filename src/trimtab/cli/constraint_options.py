"""`--json-schema`, `--regex`, `--grammar` and `--choice`: what an answer must look like."""

from __future__ import annotations

import argparse
from pathlib import Path

from trimtab.constraint import Constraint
from trimtab.errors import DataError, OptionError


def add_constraint_options(parser: argparse.ArgumentParser) -> None:
    """The four flags, of which one may be given."""
    group = parser.add_argument_group("form of the answer").add_mutually_exclusive_group()
    group.add_argument("--json-schema", metavar="FILE", help="answers are JSON that this JSON schema accepts")
    group.add_argument("--regex", metavar="R", help="answers match this regular expression as a whole")
    group.add_argument("--grammar", metavar="FILE", help="answers are texts of this grammar, in Lark or GBNF")
    group.add_argument(
        "--choice",
        dest="choices",
        action="append",
        metavar="TEXT",
        help="answers are this text, or another that is given; repeat for several",
    )


def constraint_of(args: argparse.Namespace) -> Constraint | None:
    """What the flags ask for. Raises OptionError or DataError for what cannot be used, as far as can be seen here."""
    if args.json_schema is not None:
        return Constraint.json_schema(_text(args.json_schema))
    if args.regex is not None:
        return Constraint.regex(args.regex)
    if args.grammar is not None:
        return Constraint.grammar(_text(args.grammar))
    return None if args.choices is None else Constraint.choice(args.choices)


def settings(constraint: Constraint | None) -> dict[str, object]:
    """What a file of answers says of a constraint, so that it is continued under the same alone."""
    return {} if constraint is None else {"constraint": {constraint.kind: constraint.value}}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}. Give a file.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"it is not UTF-8 from byte {error.start} on.", path=path) from None
