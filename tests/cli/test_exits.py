"""Exit codes: one table, and no command with a code of its own."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab import cli
from trimtab.cli.exits import MEANINGS, Exit
from trimtab.cli.main import COMMANDS
from trimtab.cli.train.command import METHODS

ENDING = {"exit", "_exit", "leave"}
"""What ends a process, with its code as the first argument."""


def bare_codes(source: str) -> Iterator[str]:
    """Where a number stands for an exit code: in a function that gives one, in a call that ends the process, in what is
    assigned to `exit_code`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) == "Exit":
            ends = [
                inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value is not None
            ]
            yield from (f"{end.lineno}: {ast.unparse(end)}" for end in ends if _has_number(end))
        elif (
            (isinstance(node, ast.Call) and _name(node.func) in ENDING and any(map(_has_number, node.args[:1])))
            or (isinstance(node, ast.Assign) and _name(node.targets[0]) == "exit_code" and _has_number(node.value))
            or (isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.unparse(node.exc))
        ):
            yield f"{node.lineno}: {ast.unparse(node)}"


def _has_number(node: ast.expr) -> bool:
    ends = (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,)
    return any(isinstance(end, ast.Constant) and isinstance(end.value, int) for end in ends)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_no_file_of_the_command_line_has_a_code_of_its_own() -> None:
    room = Path(inspect.getfile(cli)).parent
    found = {path.name: list(bare_codes(path.read_text(encoding="utf-8"))) for path in room.rglob("*.py")}
    assert {name: codes for name, codes in found.items() if codes} == {}


@pytest.mark.parametrize(
    "source",
    [
        "def run() -> Exit:\n    return 1",
        "def run() -> Exit:\n    return 1 if x else Exit.DONE",
        "sys.exit(3)",
        "leave(130)",
        "os._exit(2)",
        "server.exit_code = 1",
        "raise SystemExit(4)",
    ],
)
def test_a_code_that_stands_as_a_number_is_found(source: str) -> None:
    assert list(bare_codes(source))


@pytest.mark.parametrize("name", [*COMMANDS, *(f"train {method}" for method in METHODS)])
def test_every_command_gives_a_code_of_the_table(name: str) -> None:
    _, _, method = name.partition(" ")
    command = METHODS[method] if method else COMMANDS[name]
    assert inspect.signature(command.run).return_annotation == "Exit"


def test_each_code_has_a_sentence() -> None:
    assert list(MEANINGS) == list(Exit)
    assert all(text.endswith(".") for text in MEANINGS.values())


def test_a_check_ends_with_whether_it_holds() -> None:
    assert [Exit.of_check(holds=True), Exit.of_check(holds=False)] == [0, 1]
