"""`--json`: every command has it, the page shows its shape, and standard output holds nothing else."""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli import main as main_module
from trimtab.cli import results
from trimtab.cli.exits import Exit
from trimtab.cli.main import build_parser

from .conftest import Run, Tiny


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command without sub-commands, by the words that call it."""
    inner = [one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not inner:
        yield name, parser
    for choices in inner:
        for word, below in choices.items():
            yield from commands(below, f"{name} {word}".strip())


COMMANDS = dict(commands(build_parser()))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_json_or_a_reason_why_not(name: str, repository: Path) -> None:
    page = (repository / "docs" / "reference" / "json.md").read_text("utf-8")
    has = "--json" in COMMANDS[name]._option_string_actions
    assert has is not (name in results.WITHOUT_JSON)
    if has:
        assert f"`trimtab {name}`" in page or f"`{name}`" in page
    else:
        assert f"`{name}`" in page.partition("## ")[0]


def test_what_has_no_json_is_a_command() -> None:
    assert set(results.WITHOUT_JSON) <= set(COMMANDS)


def _shape(repository: Path, name: str) -> dict[str, Any]:
    page = (repository / "docs" / "reference" / "json.md").read_text("utf-8")
    found = re.search(rf"^## `trimtab {name}`\n\n```json\n(.*?)\n```", page, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, name
    shape: dict[str, Any] = json.loads(found[1])
    return shape


def test_every_shape_on_the_page_is_json(repository: Path) -> None:
    page = (repository / "docs" / "reference" / "json.md").read_text("utf-8")
    names = re.findall(r"^## `trimtab ([a-z ]+)`$", page, flags=re.MULTILINE)
    assert set(names) <= set(COMMANDS)
    assert all(_shape(repository, name) for name in names)


def test_the_shapes_are_those_that_are_printed(run: Run, tiny: Tiny, repository: Path, tmp_path: Path) -> None:
    asked = ("--model", tiny.model, "--prompt", "Hi", "--max-new-tokens", "3", "--seed", "1", "--json")
    calls = {
        "check": ("check", tiny.lora, "--json"),
        "generate": ("generate", *asked),
        "explain": ("explain", *asked),
        "soup": ("soup", f"{tiny.lora}:1", "--out", str(tmp_path / "soup"), "--json"),
        "vllm pack": (
            "vllm",
            "pack",
            "--model",
            tiny.model,
            "--guide",
            f"kind={tiny.lora}",
            "--out",
            str(tmp_path / "p"),
        ),
    }
    for name, argv in calls.items():
        outcome = run(*argv, *([] if "--json" in argv else ["--json"]))
        assert outcome.out.count("\n") == 1, outcome
        assert set(json.loads(outcome.out)) == set(_shape(repository, name)), name


class Printing:
    """A command beside whose result a library prints."""

    def register(self, subparsers: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
        parser = subparsers.add_parser("loud")
        parser.add_argument("--json", action="store_true")

    def run(self, args: argparse.Namespace) -> Exit:
        print("A library says hello.")
        sys.stdout.write("So does another.\n")
        results.print_json({"text": "ü", "kl": math.inf, "inner": [{"a": math.nan}, 1.5, True, None]})
        return Exit.DONE


def test_whatever_else_is_printed_goes_to_standard_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main_module.COMMANDS, "loud", Printing())
    outcome = run("loud", "--json")
    assert outcome.out == '{"text": "ü", "kl": null, "inner": [{"a": null}, 1.5, true, null]}\n'
    assert outcome.err == "A library says hello.\nSo does another.\n"
    assert run("loud").out.startswith("A library says hello.\n")


def test_results_are_printed_in_one_place(repository: Path) -> None:
    room = repository / "src" / "trimtab" / "cli"
    found = [
        f"{path.name}:{node.lineno}"
        for path in room.rglob("*.py")
        if path.name not in ("results.py", "probe.py")  # the probe is a process of its own
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and "json.dumps" in ast.unparse(node)
    ]
    assert found == []
