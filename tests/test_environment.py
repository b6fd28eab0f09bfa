"""Environment variables: one table, from which the code reads and the page is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trimtab import environment
from trimtab.environment import GIVEN, OTHERS, READ, Given, Variable
from trimtab.errors import OptionError
from trimtab.storage.directories import cache_dir

EVERY = (*READ, *GIVEN, *OTHERS)


def test_every_variable_is_declared_once_and_listed() -> None:
    assert len({one.name for one in EVERY}) == len(EVERY)
    declared = {name: one for name, one in vars(environment).items() if isinstance(one, Variable)}
    assert set(declared.values()) == {*READ, *GIVEN}
    assert all(one.meaning.endswith(".") for one in EVERY)


def test_what_is_declared_is_used(repository: Path) -> None:
    sources = "".join(path.read_text("utf-8") for path in (repository / "src" / "trimtab").rglob("*.py"))
    names = [name for name, one in vars(environment).items() if isinstance(one, Variable)]
    used = set(re.findall(r"\benvironment\.([A-Z_]+)\b", sources)) | {"XDG_CACHE"}
    assert [name for name in names if name not in used] == []


def test_every_variable_of_trimtab_is_documented(repository: Path) -> None:
    """Those that the code, a page or a test names: in the table, or, for tests, in CONTRIBUTING.md."""
    contributing = (repository / "CONTRIBUTING.md").read_text("utf-8")
    known = {one.name for one in EVERY} | set(re.findall(r"\bTRIMTAB_[A-Z_]+\b", contributing))
    found = {}
    for folder in ("src", "docs", "tests", "recipes", "benchmarks", "examples"):
        for path in (repository / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml", ".yml", ".json"):
                found[path.name] = set(re.findall(r"\bTRIMTAB_[A-Z]+(?:_[A-Z]+)*\b", path.read_text("utf-8"))) - known
    assert {name: names for name, names in found.items() if names} == {}


def test_a_number_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two{0}")
    with pytest.raises(OptionError, match=r"\$WORLD_SIZE is 'two\{0\}', which is no whole number"):
        environment.WORLD_SIZE.whole(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert environment.WORLD_SIZE.whole(1) == 2
    monkeypatch.delenv("WORLD_SIZE")
    assert environment.WORLD_SIZE.whole(1) == 1


def test_what_somebody_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given("TRIMTAB_CACHE", "Nothing.", "nobody", "1")
    monkeypatch.setenv(given.name, "0")
    given.give()
    assert given.read() == "0"
    monkeypatch.delenv(given.name)
    given.give("2")
    assert given.read() == "2"
    monkeypatch.delenv(given.name)
    given.give()
    assert given.read() == "1"


@pytest.mark.parametrize(("text", "meant"), [("1", True), ("On", True), ("yes", True), ("no", False), ("", False)])
def test_yes_and_no_are_read_as_accelerate_does(monkeypatch: pytest.MonkeyPatch, text: str, meant: bool) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", text)
    assert environment.USE_FSDP.is_true() is meant


def test_an_empty_directory_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("TRIMTAB_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_dir() == tmp_path / "user" / "trimtab"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_dir() == Path.home() / ".cache" / "trimtab"
