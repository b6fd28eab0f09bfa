"""`trimtab completion`: a script by which a shell completes commands, flags, choices and files.

bash: `trimtab completion bash > ~/.local/share/bash-completion/completions/trimtab`. zsh: `trimtab completion zsh >
DIR/_trimtab`, DIR being one of $fpath. tcsh: `trimtab completion tcsh > FILE`, and `source FILE` in ~/.tcshrc.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from trimtab.cli.exits import Exit
from trimtab.cli.results import output

SHELLS = ("bash", "zsh", "tcsh")
FILES = frozenset(
    {
        *("FILE", "FILE.jsonl", "GUIDE", "MODEL", "PAGE", "PAIRS", "PATH", "PATH:WEIGHT", "RECIPE", "RELEASED"),
        *("SOURCE",),
    }
)
"""What stands in help for a value that may be a path."""
DIRECTORIES = frozenset({"DIR", "RUN"})
"""What stands in help for a value that is a directory."""
_ALSO_FILES = "complete -o bashdefault -o default -F _shtab_trimtab trimtab"
"""Where nothing else is known, as behind the = of --guide NAME=PATH, bash completes file names."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "completion",
        help="a script that completes commands and flags in your shell",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that the script is for")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Print the script of a shell."""
    print(script(args.whole, args.shell), file=output())
    return Exit.DONE


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script by which a shell completes what a parser accepts."""
    import shtab

    for action in _actions(parser):
        kind = _kind(action)
        if kind is not None:
            vars(action)["complete"] = {"file": shtab.FILE, "directory": shtab.DIRECTORY}[kind]
    written: str = shtab.complete(parser, shell)
    return f"{written}\n{_ALSO_FILES}" if shell == "bash" else written


def _kind(action: argparse.Action) -> str | None:
    """Whether a value is a file or a directory; None where it is neither, or one of some choices."""
    name = action.metavar
    if action.choices is not None or action.nargs == 0 or isinstance(name, tuple):
        return None
    if name in DIRECTORIES:
        return "directory"
    return "file" if name in FILES or action.dest == "model" else None


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument and flag of a parser and of those below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action
