from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.cli.answering.answer_file import plan, settings_path
from trimtab.errors import DataError, OptionError, OutputExistsError

SETTINGS = {"model": "demo", "seed": 1}
LINES = ['{"text": "one"}\n', '{"text": "two\\u2028"}\n', '{"text": "three"}\n']


def _begun(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "answers.jsonl"
    with plan(str(path), resume=False, overwrite=False).open(SETTINGS) as stream:
        stream.write(content)
    return path


def test_a_new_file_has_its_settings_beside_it(tmp_path: Path) -> None:
    path = _begun(tmp_path / "deep" / "down", LINES[0])
    assert path.read_text() == LINES[0]
    assert json.loads(settings_path(path).read_text()) == SETTINGS
    assert sorted(item.name for item in path.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.settings.json"]


def test_planning_writes_nothing(tmp_path: Path) -> None:
    plan(str(tmp_path / "x" / "answers.jsonl"), resume=True, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_in_the_way(tmp_path: Path) -> None:
    path = _begun(tmp_path, LINES[0])
    with pytest.raises(OutputExistsError, match="--resume to continue it, --overwrite to replace it"):
        plan(str(path), resume=False, overwrite=False)
    with pytest.raises(OptionError, match="is a directory"):
        plan(str(tmp_path), resume=False, overwrite=True)


def test_overwrite_begins_anew(tmp_path: Path) -> None:
    path = _begun(tmp_path, LINES[0])
    with plan(str(path), resume=False, overwrite=True).open({"seed": 2}) as stream:
        stream.write(LINES[1])
    assert path.read_text() == LINES[1]
    assert json.loads(settings_path(path).read_text()) == {"seed": 2}


@pytest.mark.parametrize("size", range(len("".join(LINES)) + 1))
def test_a_file_cut_anywhere_continues_to_the_same_file(tmp_path: Path, size: int) -> None:
    whole = "".join(LINES)
    path = _begun(tmp_path, whole[:size])
    found = plan(str(path), resume=True, overwrite=False)
    found.check(SETTINGS, LINES)
    with found.open(SETTINGS) as stream:
        stream.writelines(LINES[found.num_done :])
    assert path.read_text() == whole


def test_a_last_line_that_is_no_object_is_torn(tmp_path: Path) -> None:
    path = _begun(tmp_path, LINES[0] + "\0\0\0\n")
    assert plan(str(path), resume=True, overwrite=False).num_done == 1


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = _begun(tmp_path, LINES[0])
    found = plan(str(path), resume=True, overwrite=False)
    with pytest.raises(OptionError, match=r"Cannot resume .*: seed was 1, is 2\. "):
        found.check({"model": "demo", "seed": 2}, LINES)
    with pytest.raises(OptionError, match='model was "demo", is null; top_k was null, is 5'):
        found.check({"seed": 1, "top_k": 5}, LINES)


def test_more_answers_than_prompts_are_refused(tmp_path: Path) -> None:
    path = _begun(tmp_path, "".join(LINES))
    with pytest.raises(OptionError, match="3 answers to 2 prompts"):
        plan(str(path), resume=True, overwrite=False).check(SETTINGS, LINES[:2])


def test_a_file_without_its_settings_is_not_continued(tmp_path: Path) -> None:
    path = _begun(tmp_path, LINES[0])
    settings_path(path).unlink()
    with pytest.raises(OptionError, match=r"answers\.jsonl\.settings\.json"):
        plan(str(path), resume=True, overwrite=False)


def test_a_file_damaged_in_the_middle_is_not_continued(tmp_path: Path) -> None:
    path = _begun(tmp_path, LINES[0] + "{torn\n" + LINES[2])
    with pytest.raises(DataError, match=r"line 2: not an answer.*--overwrite"):
        plan(str(path), resume=True, overwrite=False)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_settings_are_not_trusted(tmp_path: Path, content: str) -> None:
    path = _begun(tmp_path, LINES[0])
    settings_path(path).write_text(content)
    with pytest.raises(DataError, match="--overwrite"):
        plan(str(path), resume=True, overwrite=False)
