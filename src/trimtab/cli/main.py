"""The `trimtab` command: one table of commands, and the one place where errors become exit codes.

Results go to standard output, progress and logs to standard error. Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any, NoReturn, Protocol

from trimtab.cli import bench, calibrate, check, compare, completion, convert, export, judge, results, serve, soup, vllm
from trimtab.cli.answering import chat, explain, generate
from trimtab.cli.demo import command as demo
from trimtab.cli.doctor import command as doctor
from trimtab.cli.exits import Exit
from trimtab.cli.make import command as make
from trimtab.cli.options import use_threads
from trimtab.cli.pairs import command as pairs
from trimtab.cli.train import command as train
from trimtab.cli.train.run_options import flags_of, is_main, naming_flags
from trimtab.errors import OptionError, TrimtabError, unknown_name
from trimtab.fields import ended


class Command(Protocol):
    """A module with one command."""

    def register(self, subparsers: argparse._SubParsersAction[Any]) -> None: ...
    def run(self, args: argparse.Namespace) -> Exit: ...


COMMANDS: dict[str, Command] = {
    "demo": demo,
    "make": make,
    "pairs": pairs,
    "train": train,
    "soup": soup,
    "calibrate": calibrate,
    "check": check,
    "generate": generate,
    "chat": chat,
    "explain": explain,
    "convert": convert,
    "export": export,
    "compare": compare,
    "judge": judge,
    "serve": serve,
    "vllm": vllm,
    "bench": bench,
    "doctor": doctor,
    "completion": completion,
}


_NEGATIVE_LIST = re.compile(r"-[\d.][^,\s]*(,[^,\s]+)+")


class Parser(argparse.ArgumentParser):
    """argparse that reports what it does not accept as an OptionError, with the nearest name that it would."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{ended(message)} See: {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but an option that is not known here is refused first, and nothing is left over.

        Abbreviations are not known: one that works today is ambiguous tomorrow.
        """
        given = _joined(sys.argv[1:] if args is None else list(args))
        for argument in given:
            if argument == "--" or (self._subparsers is not None and not argument.startswith("-")):
                break  # what follows is not an option, or a subcommand's own
            name = argument.partition("=")[0]
            # A text with a space in it is never an option, as in argparse: --prompt "-- What follows".
            if name.startswith("--") and " " not in argument and name not in self._option_string_actions:
                raise unknown_name("option", name, self._option_string_actions)
        namespace, extras = super().parse_known_args(given, namespace)
        if extras:
            self.error(f"unexpected argument {extras[0]!r}")
        if not hasattr(namespace, "flags"):  # the innermost command's
            namespace.flags = flags_of(self)
        return namespace, extras


def _joined(given: Sequence[str]) -> list[str]:
    """Arguments in which a list that begins with a negative number (`--weights -1,0`) belongs to its option.

    argparse knows lone negative numbers and takes such a list for an option.
    """
    found: list[str] = []
    for argument in given:
        if _NEGATIVE_LIST.fullmatch(argument) and found and found[-1].startswith("--") and "=" not in found[-1]:
            found[-1] = f"{found[-1]}={argument}"
        else:
            found.append(argument)
    return found


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="trimtab",
        description="Steer a frozen language model token by token with small trained guides.",
    )
    parser.add_argument("--version", action="version", version=f"trimtab {version('trimtab')}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more, on standard error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.register(subparsers)
    subparsers.choices["completion"].set_defaults(whole=parser)
    return parser


def main(argv: Sequence[str] | None = None) -> Exit:
    """Run one command and return its exit code."""
    try:
        args = build_parser().parse_args(argv)
        args.given = sys.argv[1:] if argv is None else list(argv)
        _configure_logging(verbose=args.verbose)
        use_threads(args)
        with naming_flags(args.flags), results.apart() if getattr(args, "json", False) else nullcontext():
            code = COMMANDS[args.command].run(args)
        sys.stdout.flush()
    except SystemExit as stop:  # --help and --version, or a library that ends the process
        return _complain(f"A package ended the command: {stop.code}.", Exit.FAILED) if stop.code else Exit.DONE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes standard output at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.READER_GONE
    except TrimtabError as error:
        return _complain(error, Exit.REFUSED)
    except OSError as error:
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        return _complain(error, Exit.FAILED)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, ImportError):
            return _complain("A package is missing or broken. `trimtab doctor` says which.", Exit.FAILED)
        return Exit.FAILED
    return code


def _complain(error: Exception | str, code: Exit) -> Exit:
    print(f"trimtab: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
    return code


def _configure_logging(*, verbose: bool) -> None:
    logging.basicConfig(stream=sys.stderr, format="trimtab: %(message)s")
    # Of several processes (`accelerate launch`) one says how it goes; all say what goes wrong.
    quiet = logging.INFO if is_main() else logging.WARNING
    logging.getLogger("trimtab").setLevel(logging.DEBUG if verbose else quiet)


if __name__ == "__main__":
    sys.exit(main())
