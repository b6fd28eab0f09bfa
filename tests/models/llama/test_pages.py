"""Pages of a mapped file are given back, and come back when they are read."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest

from trimtab.models.llama.file import LlamaFile
from trimtab.models.llama.pages import MAPS, release_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux alone")


def _resident(path: Path) -> int:
    """Bytes of a file that lie in this process's memory."""
    total, inside = 0, False
    for line in MAPS.with_name("smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            inside = line.endswith(f" {path.resolve()}")
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_pages_that_were_read_are_given_back_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a name with spaces.gguf"
    content = os.urandom(64 * mmap.PAGESIZE)
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        assert _resident(path) == len(content)
        assert release_pages(path) == len(content)
        assert _resident(path) == 0
        assert mapped[:] == content


def test_a_mapping_that_may_be_written_to_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    path.write_bytes(bytes(4 * mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0] = 1
        assert release_pages(path) == 0
        assert mapped[0] == 1


@pytest.mark.usefixtures("needs_llama")
def test_a_file_that_was_loaded_holds_none_of_its_first_copy(file: Path) -> None:
    loaded = LlamaFile(file)
    assert loaded.num_bytes > 0
    assert str(file.resolve()) in MAPS.read_text()
    assert _resident(file) < file.stat().st_size / 2
