"""What counts as a checkpoint, what may be continued, and what is in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.errors import CheckpointError, InputError, OptionError, OutputExistsError
from trimtab.training.run.checkpoints import (
    SEAL,
    check_output,
    cut_curve,
    is_whole,
    last_good,
    open_workspace,
    seal,
    step_of,
    workspace_of,
)


def checkpoint(workspace: Path, step: int, *, sealed: bool = True) -> Path:
    path = workspace / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(b"w" * 100)
    (path / "trainer_state.json").write_text("{}")
    (path / "optimizer_0").mkdir()  # each process's part of what is spread over them
    (path / "optimizer_0" / "__1_0.distcp").write_bytes(b"o" * 100)
    if sealed:
        seal(path)
    return path


def test_the_newest_by_number_is_the_last(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    found = last_good(tmp_path)
    assert found is not None
    assert (found.name, step_of(found)) == ("checkpoint-100", 100)


def test_no_checkpoint_is_step_0(tmp_path: Path) -> None:
    assert last_good(tmp_path) is None
    assert step_of(None) == 0


@pytest.mark.parametrize("damage", ["no seal", "a file cut", "a part cut", "a file gone", "a seal cut"])
def test_a_checkpoint_cut_short_is_left_out(damage: str, tmp_path: Path) -> None:
    good, bad = checkpoint(tmp_path, 10), checkpoint(tmp_path, 20, sealed=damage != "no seal")
    if damage == "a file cut":
        (bad / "weights.safetensors").write_bytes(b"w" * 50)
    elif damage == "a part cut":
        (bad / "optimizer_0" / "__1_0.distcp").write_bytes(b"")
    elif damage == "a file gone":
        (bad / "trainer_state.json").unlink()
    elif damage == "a seal cut":
        (bad / SEAL).write_text('{"weights')
    assert not is_whole(bad)
    assert last_good(tmp_path) == good
    assert bad.exists(), "looking removes nothing"
    assert last_good(tmp_path, clean=True) == good
    assert not bad.exists()


def test_what_stands_in_the_way_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "guide"
    check_output(out, resume=False, overwrite=False)
    workspace_of(out).mkdir()
    with pytest.raises(OutputExistsError, match=r"guide\.partial already exists.*--resume.*--overwrite"):
        check_output(out, resume=False, overwrite=False)
    out.mkdir()
    with pytest.raises(OutputExistsError, match=r"guide already exists"):
        check_output(out, resume=False, overwrite=False)
    check_output(out, resume=True, overwrite=False)
    check_output(out, resume=False, overwrite=True)
    with pytest.raises(OptionError, match="give one of them"):
        check_output(out, resume=True, overwrite=True)


def test_a_file_is_never_replaced_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "guide").write_text("precious")
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "guide", resume=False, overwrite=True)


def test_a_run_is_continued_only_with_its_own_settings(tmp_path: Path) -> None:
    out = tmp_path / "guide"
    workspace = open_workspace(out, {"beta": 0.05, "targets": ("a", "b")}, resume=False)
    checkpoint(workspace, 5)
    open_workspace(out, {"beta": 0.05, "targets": ("a", "b")}, resume=True)
    assert last_good(workspace) is not None
    with pytest.raises(OptionError, match=r"other settings: beta is 0.1 here and 0.05 in the run. Give the same ones"):
        open_workspace(out, {"beta": 0.1, "targets": ("a", "b")}, resume=True)
    open_workspace(out, {"beta": 0.1}, resume=False)
    assert last_good(workspace) is None, "a new run begins without the old one's checkpoints"


def test_resuming_nothing_starts(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "deep" / "guide", {"beta": 1}, resume=True)
    assert json.loads((workspace / "run.json").read_text()) == {"beta": 1}


def test_a_damaged_description_says_so(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "guide", {}, resume=False)
    (workspace / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        open_workspace(tmp_path / "guide", {}, resume=True)


def test_the_curve_is_cut_where_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    cut_curve(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    cut_curve(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()
