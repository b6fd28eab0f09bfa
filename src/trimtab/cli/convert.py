"""`trimtab convert`: turn somebody else's checkpoint into a guide's directory.

`trimtab convert agent RELEASED.pth guides/agent --width 4096` reads an accept-reject agent of MARA's authors
(`actor_N.pth`): its weights and nothing else, so code in the file never runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import options
from trimtab.cli.exits import Exit
from trimtab.cli.results import print_json

if TYPE_CHECKING:
    from trimtab.core import Guide


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and one sub-command for each kind of guide."""
    parser = subparsers.add_parser("convert", help="turn a released checkpoint into a guide", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    agent = kinds.add_parser("agent", help="an accept-reject agent (MARA)", description=__doc__, allow_abbrev=False)
    agent.add_argument("checkpoint", metavar="RELEASED", help="a state dict saved by torch")
    agent.add_argument("out", metavar="DIR", help="where the guide goes")
    agent.add_argument(
        "--width",
        type=options.whole(1),
        required=True,
        metavar="D",
        help="hidden size of the base it was trained on: 4096 for a 7B or 8B model",
    )
    agent.add_argument("--base", default="", metavar="NAME", help="the base it was trained on, for its card")
    agent.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    agent.add_argument("--json", action="store_true", help="what was written as JSON on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Convert a checkpoint of the kind that was named."""
    from trimtab.storage.loading import save_guide

    guide = CONVERTERS[args.kind](args)
    save_guide(guide, args.out, overwrite=args.overwrite)
    if args.json:
        print_json({"out": args.out, "kind": args.kind})
    options.say(f"{args.out}: a guide for models of hidden size {args.width}")
    return Exit.DONE


def _agent(args: argparse.Namespace) -> Guide:
    from dataclasses import replace

    from trimtab.guides.agent import read_released

    return replace(read_released(Path(args.checkpoint), args.width), trained_on=args.base)


CONVERTERS: Mapping[str, Callable[[argparse.Namespace], Guide]] = {"agent": _agent}
"""The one table from a kind of checkpoint to what reads it."""
