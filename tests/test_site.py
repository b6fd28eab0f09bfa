"""The site that `make docs` builds: what its navigation names, and the links that it can keep."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def site_links(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_links", repository / "docs" / "site_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation_once(repository: Path) -> None:
    named = re.findall(r": (\S+\.md)$", (repository / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    pages = [path.relative_to(repository / "docs").as_posix() for path in (repository / "docs").rglob("*.md")]
    assert sorted(named) == sorted(pages)


def test_every_page_is_on_the_first_one(repository: Path) -> None:
    index = (repository / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", index)}
    pages = {path.relative_to(repository / "docs").as_posix() for path in (repository / "docs").rglob("*.md")}
    assert pages - {"index.md"} - linked == set()


@pytest.mark.parametrize(
    ("folder", "written", "kept"),
    [
        (".", "see [`core`](../src/trimtab/core.py)", "see `core`"),
        ("start", "see [it](../../examples/data/x.jsonl)", "see it"),
        ("start", "see [it](../data.md#formats)", "see [it](../data.md#formats)"),
        (".", "![a picture](images/why.png)", "![a picture](images/why.png)"),
        (".", "[a paper](https://example.org/../x)", "[a paper](https://example.org/../x)"),
        (".", "[below](#here)", "[below](#here)"),
    ],
)
def test_links_out_of_the_pages_become_their_text(site_links: ModuleType, folder: str, written: str, kept: str) -> None:
    assert site_links.leave_out(written, PurePosixPath(folder)) == kept
