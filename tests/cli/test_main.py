"""Exit codes, and what goes to which stream."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from trimtab.cli import main as main_module
from trimtab.cli.exits import Exit
from trimtab.cli.main import COMMANDS, build_parser
from trimtab.errors import CheckpointError

from .conftest import Run, Tiny, spawn, ways_out_that_are_not_there

LIGHT = """
import sys
before = set(sys.modules)
import trimtab.cli.main
trimtab.cli.main.build_parser().format_help()
new = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items() if name not in before}
print(sorted(name for name, file in new.items() if "site-packages" in file and "." not in name))
"""


def test_the_command_line_itself_imports_no_other_package() -> None:
    """Whatever it needed beside the standard library would be missing where an extra is not installed."""
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_package_is_a_command_too() -> None:
    argv = [sys.executable, "-m", "trimtab", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"trimtab {version('trimtab')}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run: Run, name: str) -> None:
    outcome = run(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"usage: trimtab {name} ")


def test_help_lists_every_command(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    assert all(f"\n    {name} " in outcome.out for name in COMMANDS)


def test_version(run: Run) -> None:
    assert run("--version").out == f"trimtab {version('trimtab')}\n"


WRONG = {
    "no command": ([], "required: COMMAND"),
    "an unknown command": (["generat"], "invalid choice: 'generat'"),
    "an unknown option": (
        ["generate", "--model", "m", "--prompt", "x", "--temprature", "1"],
        "Unknown option '--temprature'. Did you mean '--temperature'?",
    ),
    "an unknown option, before what is missing": (["generate", "--modle", "m"], "Did you mean '--model'?"),
    "an unknown option of a nested command": (["bench", "decode", "--bach", "1"], "Did you mean '--batch'?"),
    "an unknown option of trimtab": (["--verbos", "generate"], "Did you mean '--verbose'?"),
    "an abbreviation": (["generate", "--model", "m", "--prompt", "x", "--temp", "1"], "Unknown option '--temp'"),
    "a stray argument": (["generate", "--model", "m", "--prompt", "x", "y"], "unexpected argument 'y'"),
    "no model": (["generate", "--prompt", "x"], "--model"),
    "a NaN temperature": (
        ["generate", "--model", "m", "--prompt", "x", "--temperature", "nan"],
        "'nan' is not accepted",
    ),
    "a NaN weight": (["generate", "--model", "m", "--prompt", "x", "--guide", "g=d:nan"], "finite number"),
    "a guide without a name": (["generate", "--model", "m", "--prompt", "x", "--guide", "d"], "NAME=PATH[:WEIGHT]"),
    "two guides of one name": (
        ["generate", "--model", "m", "--prompt", "x", "--guide", "g=d", "--guide", "g=e"],
        "'g' twice",
    ),
    "two sources of prompts": (["generate", "--model", "m", "--prompt", "x", "--prompts", "p"], "not allowed with"),
    "a NaN weight to measure": (["bench", "decode", "--model", "m", "--weights", "0,nan"], "'nan' is not accepted"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_on_standard_error(run: Run, name: str) -> None:
    argv, problem = WRONG[name]
    outcome = run(*argv)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("trimtab: error: ")
    assert outcome.err.count("\n") == 1
    assert problem in outcome.err


def test_a_text_may_begin_like_an_option() -> None:
    args = build_parser().parse_args(["generate", "--model", "m", "--prompt", "-- What follows", "--stop=--end"])
    assert (args.prompt, args.stop) == (["-- What follows"], ["--end"])


class Failing:
    """A command that raises what it is given."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def register(self, subparsers: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
        subparsers.add_parser("fail")

    def run(self, args: argparse.Namespace) -> Exit:
        if self.error is not None:
            raise self.error
        return Exit.REFUSED


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CheckpointError("No weights\nthere."), 2, "trimtab: error: No weights there.\n"),
        (OSError(28, "No space left on device", "a.jsonl"), 1, "No space left on device: 'a.jsonl'\n"),
        (ZeroDivisionError("oh"), 1, "Traceback (most recent call last)"),
        (ImportError("no such package"), 1, "`trimtab doctor` says which"),
        (SystemExit("no licence"), 1, "trimtab: error: A package ended the command: no licence.\n"),
        (SystemExit(), 0, ""),
        (KeyboardInterrupt(), 130, ""),
        (None, 2, ""),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, code: int, message: str
) -> None:
    monkeypatch.setitem(main_module.COMMANDS, "fail", Failing(error))
    outcome = run("fail")
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert bool(outcome.err) == bool(message)


def test_a_process_separates_results_from_progress(tiny: Tiny) -> None:
    argv = ["generate", "--model", tiny.model, "--prompt", "Hi", "--max-new-tokens", "3", "--json", "--seed", "1"]
    outcome = spawn(argv)
    assert outcome.code == 0
    assert outcome.out.startswith('{"prompt": "Hi", "text": ')
    assert outcome.out.count("\n") == 1
    assert f"loading {tiny.model}" in outcome.err


def test_a_process_reports_errors_in_its_exit_code() -> None:
    outcome = spawn(["generate", "--prompt", "x", "--model", "demo", "--top-k", "-1"])
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("trimtab: error: argument --top-k: '-1' is not accepted")


def test_a_reader_that_goes_away_is_no_crash(tiny: Tiny) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    argv = ["generate", "--model", tiny.model, "--prompt", "Hi", "--max-new-tokens", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "trimtab.cli.main", *argv],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "message", "found"),
    [
        (("soup", "a"), "a exists. Give --resume or --overwrite.", ["--resume"]),
        (("train", "arm"), "Give --resume, or --data.", []),
        (("chat",), "Use `trimtab generate --raw`.", []),
        (("generate", "--loud"), "Unknown option '--loud'.", []),
        (("explain",), "Give the model: load_guide(path), trace=True.", ["load_guide(", "trace=True"]),
    ],
)
def test_a_way_out_that_a_command_does_not_have_is_found(argv: tuple[str, ...], message: str, found: list[str]) -> None:
    """Every test that runs a command through `run` is held to this."""
    assert ways_out_that_are_not_there(argv, f"trimtab: error: {message}") == found
