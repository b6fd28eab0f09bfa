"""The form of answers at the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from trimtab.cli.constraint_options import add_constraint_options, constraint_of, settings
from trimtab.constraint import Constraint
from trimtab.errors import DataError, OptionError


def _asked(*flags: str) -> Constraint | None:
    parser = argparse.ArgumentParser()
    add_constraint_options(parser)
    return constraint_of(parser.parse_args(flags))


def test_each_flag_is_its_constraint(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "integer"}')
    grammar.write_text('start: "a"')
    assert _asked() is None
    assert _asked("--json-schema", str(schema)) == Constraint.json_schema({"type": "integer"})
    assert _asked("--regex", "a+") == Constraint.regex("a+")
    assert _asked("--grammar", str(grammar)) == Constraint.grammar('start: "a"')
    assert _asked("--choice", "a", "--choice", "b") == Constraint.choice(["a", "b"])


def test_two_forms_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _asked("--regex", "a", "--choice", "a")
    assert "not allowed with" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="none cannot be read"):
        _asked("--json-schema", str(tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8 from byte 0"):
        _asked("--grammar", str(tmp_path / "bytes"))


def test_a_file_of_answers_names_its_form() -> None:
    assert settings(None) == {}
    assert json.dumps(settings(Constraint.choice(["a"]))) == '{"constraint": {"choice": ["a"]}}'
