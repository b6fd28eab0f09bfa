"""The tree that errors.py draws is the tree that it defines, and every message says the way out."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

from trimtab import errors
from trimtab.errors import DataError, MissingExtraError, OptionError, OutputExistsError, TrimtabError, unknown_name


def _drawn() -> dict[str, tuple[str, str | None]]:
    """Class -> (parent, built-in it also is), read from the drawing at the top of the module."""
    tree: dict[str, tuple[str, str | None]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([│├└─ ]*)([A-Z]\w+Error)(?: \((\w+)\))?", line)
        if match:
            depth = len(match.group(1)) // 4
            above[depth:] = [match.group(2)]
            tree[match.group(2)] = (above[depth - 1] if depth else "Exception", match.group(3))
    return tree


def test_the_drawing_is_the_tree() -> None:
    defined = {
        name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__
    }
    drawn = _drawn()
    assert set(drawn) == set(defined)
    for name, (parent, builtin) in drawn.items():
        bases = [base.__name__ for base in defined[name].__bases__]
        assert bases == [parent, *([builtin] if builtin else [])], name


def test_every_error_is_caught_by_the_root_and_explained() -> None:
    for name in _drawn():
        cls = getattr(errors, name)
        assert issubclass(cls, TrimtabError)
        assert cls.__doc__, name


@pytest.mark.parametrize(
    ("path", "line", "message"),
    [
        (None, None, "no text"),
        ("pairs.jsonl", None, "pairs.jsonl: no text"),
        (Path("pairs.jsonl"), 7, "pairs.jsonl, line 7: no text"),
    ],
)
def test_a_data_error_says_where(path: str | Path | None, line: int | None, message: str) -> None:
    error = DataError("no text", path=path, line=line)
    assert str(error) == message
    assert error.path == (None if path is None else Path(path))
    assert error.line == line
    assert isinstance(error, ValueError)


def test_an_output_in_the_way_names_the_flags() -> None:
    message = str(OutputExistsError("answers.jsonl"))
    assert "answers.jsonl" in message
    assert "--resume" in message
    assert "--overwrite" in message


def test_a_missing_extra_names_the_install_line() -> None:
    error = MissingExtraError("trl", "train", "Training")
    assert str(error) == 'Training needs trl, which is not installed. Run: pip install "trimtab[train]"'
    assert (error.package, error.extra) == ("trl", "train")
    assert isinstance(error, ImportError)


def test_an_unknown_name_suggests_the_nearest() -> None:
    error = unknown_name("guide", "helpfull", ["harmless", "helpful"])
    assert isinstance(error, OptionError)
    assert str(error) == "Unknown guide 'helpfull'. Did you mean 'helpful'? Accepted: harmless, helpful."


def test_an_unknown_name_far_from_all_suggests_nothing() -> None:
    message = str(unknown_name("guide", "zzz", ["b", "a"]))
    assert message == "Unknown guide 'zzz'. Accepted: a, b."


def test_an_unknown_name_where_none_is_accepted() -> None:
    assert str(unknown_name("guide", "x", [])) == "Unknown guide 'x'. Accepted: none."


@pytest.mark.parametrize(
    "error",
    [
        errors.OptionError("wrong"),
        errors.DataError("no prompt.", path="p.jsonl", line=3),
        errors.OutputExistsError("out"),
        errors.MissingExtraError("ray", "ray", "Rolling out on workers"),
        errors.NotFiniteError("NaN"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_whole_from_another_process(error: errors.TrimtabError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)
