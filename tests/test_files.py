"""What is written is there whole or not at all: no reader ever sees half of it, no failure leaves any of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trimtab.storage import files
from trimtab.storage.files import new_directory, whole_file, write_text


def no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_text_that_cannot_be_written_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "guide.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["guide.json"]


def test_a_text_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "guide.json", []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append((path.exists(), *map(Path.read_bytes, tmp_path.iterdir()))))
    write_text(path, "a\r\nb\n")
    assert seen == [(False, b"a\r\nb\n")]
    assert path.read_bytes() == b"a\r\nb\n"


def test_a_file_that_somebody_else_writes_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"

    def cut() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            assert not path.exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut()
    assert list(tmp_path.iterdir()) == []
    with whole_file(path) as temporary:
        temporary.write_bytes(b"whole")
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("rows.bin", b"whole")]


def test_a_directory_that_is_replaced_is_never_seen_half_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "guide"
    with new_directory(target) as temporary:
        (temporary / "old").write_text("1")
    seen = []
    remove = files.shutil.rmtree

    def watched(path: Path, **options: bool) -> None:
        seen.append(sorted(item.name for item in target.iterdir()))
        remove(path, **options)

    monkeypatch.setattr(files.shutil, "rmtree", watched)
    with new_directory(target, overwrite=True) as temporary:
        (temporary / "new").write_text("2")
    assert set(map(tuple, seen)) == {("new",)}
    assert [item.name for item in tmp_path.iterdir()] == ["guide"]


def test_a_directory_whose_replacement_fails_stands_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "guide"
    with new_directory(target) as temporary:
        (temporary / "old").write_text("1")
    rename = Path.rename

    def fail(self: Path, other: Path) -> Path:
        if other == target and (self / "new").exists():
            no_space()
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)

    def replace() -> None:
        with new_directory(target, overwrite=True) as temporary:
            (temporary / "new").write_text("2")

    with pytest.raises(OSError, match="No space left"):
        replace()
    assert [item.name for item in target.iterdir()] == ["old"]
    assert [item.name for item in tmp_path.iterdir()] == ["guide"]
