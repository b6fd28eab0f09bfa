"""`trimtab soup`: average the weights of policies (Rewarded Soups).

Policies that were trained from one start, each for a reward of its own, become one policy whose weights are
λ₁·first + λ₂·second + ...: a point between them, without training. Give each directory with its weight.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from trimtab.cli import options
from trimtab.cli.exits import Exit
from trimtab.cli.results import print_json
from trimtab.errors import OptionError

if TYPE_CHECKING:
    from trimtab.training.soup import SoupPart

_FORM = "PATH:WEIGHT, for example policies/helpful:0.5"


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "soup", help="average the weights of policies", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("parts", nargs="+", type=str, metavar="PATH:WEIGHT", help="a policy's directory and its weight")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the averaged policy goes")
    parser.add_argument(
        "--average",
        choices=("deltas", "factors"),
        default="deltas",
        help="of adapters: what they change, exactly; or A and B apart, as one paper's code does (%(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--json", action="store_true", help="what was written as JSON on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Average policies."""
    parts = [parse_part(text) for text in args.parts]
    from trimtab.training.soup import soup

    total = sum(part.weight for part in parts)
    if abs(total - 1) > 1e-6:
        options.say(f"the weights sum to {total:g}, not to 1; they are taken as they are")
    out = soup(parts, args.out, averaged=args.average, overwrite=args.overwrite)
    if args.json:
        weights = [{"path": part.path, "weight": part.weight} for part in parts]
        print_json({"out": str(out), "parts": weights, "average": args.average})
    options.say(f"{out}: {' + '.join(f'{part.weight:g} × {part.path}' for part in parts)}")
    return Exit.DONE


def parse_part(text: str) -> SoupPart:
    """`PATH:WEIGHT` -> SoupPart; the weight follows the last colon. Raises OptionError."""
    from trimtab.training.soup import SoupPart

    path, colon, tail = text.rpartition(":")
    if not colon or not path:
        raise OptionError(f"{text!r} has no weight. Accepted: {_FORM}.")
    try:
        return SoupPart(path, float(tail))
    except ValueError:
        raise OptionError(f"The weight {tail!r} of {path} is not a number. Accepted: {_FORM}.") from None
