"""Every claim of the papers: what is fixed, run, and on the page.

    python -m recipes.claims list
    python -m recipes.claims run NAME [--data DIR] [--models DIR] [--work DIR] [--stage NAME] [--dry-run]
    python -m recipes.claims run NAME --scale paper        # prints commands, hardware and hours; runs nothing
    python -m recipes.claims page [--check]                # docs/evaluation/claims.md from the rows on file

Cut short, the same command goes on. What `run` keeps for the page is `recipes/claims/NAME/rows/`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.claims import page, stages
from recipes.claims.recipe import BY_HAND, REPOSITORY, SCALES, names, read
from trimtab.errors import OptionError, TrimtabError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    1 where a stage failed or the page is behind, 2 for a wrong request, 141 where nobody reads on.
    """
    args = _parser().parse_args(argv)
    try:
        code = {"list": _list, "run": _run, "page": _page}[args.command](args)
        sys.stdout.flush()
        return code
    except stages.StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except TrimtabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.claims", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every claim with its time, what it needs and its verdict")
    run = commands.add_parser("run", help="the stages of a claim that are not finished")
    run.add_argument("name", metavar="NAME", help="a claim; `list` names them")
    run.add_argument("--scale", choices=SCALES, default="here", help="how large (default: %(default)s)")
    run.add_argument(
        "--work", type=Path, metavar="DIR", help="what the stages make (default: one of the claim's own in runs/claims)"
    )
    run.add_argument(
        "--data", type=Path, metavar="DIR", help="pairs and prompts, such as recipes/public_data.py builds"
    )
    run.add_argument("--models", type=Path, metavar="DIR", help="where the GGUF files that a recipe names lie")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another value; rows stay in --work"
    )
    run.add_argument("--stage", metavar="NAME", help="this stage alone")
    run.add_argument("--dry-run", action="store_true", help="print the commands and times, run nothing")
    run.add_argument("--execute", action="store_true", help="run the stages of --scale paper too")
    written = commands.add_parser("page", help="write docs/evaluation/claims.md from the rows")
    written.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the page is behind")
    return parser


def _list(args: argparse.Namespace) -> int:
    for name in names():
        claim = read(name)
        needs = " ".join(f"--{one}" for one in stages.by_hand(claim))
        told = page.verdict(claim).replace("**", "")
        print(f"{claim.row:>2}  {name:<18} {claim.hours('here'):>5.1f} h  {needs:<15} {told}")
    return 0


def _run(args: argparse.Namespace) -> int:
    claim = read(args.name)
    given = dict(_pair(one) for one in args.set)
    given |= {name: str(value) for name in BY_HAND if (value := getattr(args, name)) is not None}
    work = args.work or REPOSITORY / "runs" / "claims" / f"{claim.shares or claim.name}-{args.scale}"
    printing = args.dry_run or (args.scale == "paper" and not args.execute)
    if printing:
        given = {name: name.upper() for name in stages.by_hand(claim)} | given
    plan = stages.plan(claim, args.scale, work, given)
    stages.describe(plan, print, only=args.stage)
    if not printing:
        print(flush=True)
        stages.run(plan, lambda text: print(text, flush=True), only=args.stage)
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise OptionError(f"--set {text} is no KEY=VALUE.")
    return key, value


def _page(args: argparse.Namespace) -> int:
    if args.check:
        now = page.PAGE.read_text(encoding="utf-8")
        if page.written(now) != now:
            print("docs/evaluation/claims.md is behind the rows: python -m recipes.claims page", file=sys.stderr)
            return 1
        return 0
    print(f"{page.PAGE}: {'written anew' if page.rewrite() else 'as it was'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
