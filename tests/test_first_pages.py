"""What README and the first ten minutes tell a new user to paste is whole; `e2e/test_first_pages.py` pastes it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import trimtab
from tests.first_pages import PAGES, SETUP, Piece, inline_commands, pieces, read


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_the_parser_takes(page: str, repository: Path) -> None:
    text = read(repository, page)
    commands = [*_commands(text), *inline_commands(text)]
    ours = [command for command in commands if command.words[0] == "trimtab"]
    assert len(ours) >= 8
    assert {command.words[0] for command in commands} <= {"trimtab", "curl", *SETUP}
    assert [refused for command in ours if (refused := _refusal(command))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_is_in_the_repository_or_written_before(page: str, repository: Path) -> None:
    """On each page by itself: a reader may begin with either."""
    assert _missing(read(repository, page), repository) == []


def test_no_two_commands_write_to_one_place(repository: Path) -> None:
    """On both pages together: a reader may go from one to the other in one directory."""
    outputs = [out for page in PAGES for command in _commands(read(repository, page)) for out in command.outputs]
    assert len(outputs) >= 8
    assert sorted(outputs) == sorted(set(outputs))


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_make_target_exists(page: str, repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?:^|`)make ([a-z-]+)", read(repository, page), flags=re.MULTILINE)
    assert targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_extra_exists(page: str, repository: Path) -> None:
    groups = re.findall(r'"(?:trimtab|\.)\[([\w,-]+)\]"', read(repository, page))
    assert groups
    known = _project(repository)["optional-dependencies"]
    assert {extra for group in groups for extra in group.split(",")} - set(known) == set()


def test_changelog_and_citation_name_the_version(repository: Path) -> None:
    version = _project(repository)["version"]
    assert f"\nversion: {version}\n" in read(repository, "CITATION.cff")
    changelog = read(repository, "CHANGELOG.md")
    assert changelog.index("## Unreleased") < changelog.index(version)


WRONG = {
    "no such file": "trimtab generate --model demo --prompts nowhere.jsonl",
    "no such guide": "trimtab generate --model demo --guide a=guides/nowhere:1.0 --prompt Hello",
    "only later": "trimtab generate --prompts made.jsonl\ntrimtab generate --prompt Hello --out made.jsonl",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_missing_file_is_found(what: str, repository: Path) -> None:
    assert _missing(f"```\n{WRONG[what]}\n```\n", repository)
    made_before = "trimtab generate --out made.jsonl\ntrimtab chat --guide a=made.jsonl:1"
    assert _missing(f"```\n{made_before}\n```\n", repository) == []


def test_a_command_is_read_to_its_end() -> None:
    page = "```\ntrimtab a \\\n  --b c   # why\n# only words\ncurl -d '{\n  \"d\": 1}'\n```\n"
    assert [piece.words for piece in pieces(page)] == [["trimtab", "a", "--b", "c"], ["curl", "-d", '{\n  "d": 1}']]


def test_readme_fits_a_visit(repository: Path) -> None:
    assert len(read(repository, "README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_python_runs_as_it_stands(
    page: str, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small model in the place of the demo's, and adapters of it in the place of the guides."""
    pytest.importorskip("peft")
    from tests.tiny import byte_llama, byte_tokenizer, write_lora
    from trimtab.models.hf import HFModel

    tokenizer = byte_tokenizer()
    model = HFModel(byte_llama(tokenizer, max_length=256), tokenizer, name="demo")
    guide = trimtab.load_guide(write_lora(tmp_path / "lora", model.module, seed=1), beside=model, form="shift")
    asked: list[str] = []

    def load_guide(name: str, **_: Any) -> trimtab.Guide:
        asked.append(name)
        return guide

    monkeypatch.setattr(trimtab, "load_model", {"demo": model}.__getitem__)
    monkeypatch.setattr(trimtab, "load_guide", load_guide)
    blocks = [piece.text for piece in pieces(read(repository, page)) if piece.is_python]
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec", dont_inherit=True), {"__name__": "__main__"})
    assert capsys.readouterr().out
    written = {out for command in _commands(read(repository, page)) for out in command.outputs}
    assert set(asked) - written == {"builtin:sentiment"}


def test_the_first_python_of_readme_needs_nothing_that_is_trained(repository: Path) -> None:
    first = next(piece for piece in pieces(read(repository, "README.md")) if piece.is_python)
    assert re.findall(r'load_\w+\("([^"]+)"', first.text) == ["demo", "builtin:sentiment"]


def _project(repository: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(read(repository, "pyproject.toml"))["project"]
    return project


def _commands(page: str) -> list[Piece]:
    return [piece for piece in pieces(page) if not piece.is_python]


def _missing(page: str, repository: Path) -> list[str]:
    written: set[str] = set()
    missing = []
    for command in _commands(page):
        if command.words[0] not in SETUP:
            missing += [path for path in command.inputs if not _is_there(path, written, repository)]
        written |= set(command.outputs)
    return missing


def _is_there(path: str, written: set[str], repository: Path) -> bool:
    """Ignored directories are not of the repository, though they may lie there: only what a command wrote counts."""
    parents = {str(parent) for parent in Path(path).parents} | {path}
    if parents & written:
        return True
    return (repository / path).exists() and not parents & {"guides", "runs", "rewards", "policies", "answers"}


def _refusal(command: Piece) -> str:
    from trimtab.cli.main import build_parser

    try:
        build_parser().parse_args(command.words[1:])
    except trimtab.TrimtabError as error:
        return f"{command.text}: {error}"
    return ""
