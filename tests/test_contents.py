"""What a name stands for: every change of content is another content, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.storage.digests import callable_contents, model_contents, scorer_contents
from trimtab.storage.exact_scorers import EXACT
from trimtab.storage.files import path_digest
from trimtab.storage.scorers import load_scorer

FILES = {
    "mine.py": "from helper import share\nfrom package.inner import part\ndef score(prompts, texts):\n"
    "    import late\n    return [share(text) + part(text) + late.more(text) for text in texts]\n",
    "helper.py": "import deeper\ndef share(text):\n    return deeper.value\n",
    "deeper.py": "value = 1.0\n",
    "late.py": "from importlib import import_module\nother = import_module('by_name')\ndef more(text):\n"
    "    return other.value\n",
    "by_name.py": "value = 3.0\n",
    "package/__init__.py": "constant = 1\n",
    "package/inner.py": "from .sibling import weight\nfrom . import second\nfrom .. import nothing\ndef part(text):\n"
    "    return weight * second.half\n",
    "package/sibling.py": "weight = 2.0\n",
    "package/second.py": "half = 0.5\n",
}
"""A scorer and all that it imports from its own folder: plainly, inside a function, relatively, by a written name."""
UNREAD = {"stranger.py": "x = 1\n", "notes.txt": "notes\n", "package/unused.py": "y = 1\n"}


def _write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return f"{root / 'mine.py'}:score"


def test_a_scorer_is_its_file_and_what_it_imports_from_its_folder(tmp_path: Path) -> None:
    found = scorer_contents(_write(tmp_path, {**FILES, **UNREAD}))
    assert sorted(found) == sorted(FILES)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(FILES)), comment=st.text("ab", min_size=1, max_size=5))
def test_every_edit_of_its_code_is_another_scorer(
    tmp_path_factory: pytest.TempPathFactory, name: str, comment: str
) -> None:
    root = tmp_path_factory.mktemp("code")
    before = scorer_contents(_write(root, FILES))
    (root / name).write_text(FILES[name] + f"# {comment}\n")
    after = scorer_contents(f"{root}/mine.py:score")
    assert {file for file in after if after[file] != before[file]} == {name}


def test_what_it_does_not_import_is_no_part_of_it_and_neither_is_where_it_lies(tmp_path: Path) -> None:
    before = scorer_contents(_write(tmp_path / "one", {**FILES, **UNREAD}))
    other = {name: text + "changed" for name, text in UNREAD.items()}
    assert scorer_contents(_write(tmp_path / "two", {**FILES, **other})) == before


def test_a_module_is_the_same_by_its_name_and_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_file = scorer_contents(_write(tmp_path, FILES))
    monkeypatch.chdir(tmp_path)
    assert scorer_contents("mine:score") == by_file
    monkeypatch.chdir("/")
    monkeypatch.syspath_prepend(tmp_path)
    assert scorer_contents("mine:score") == by_file


def test_of_an_installed_package_only_the_package_is_read() -> None:
    found = scorer_contents("vaderSentiment.vaderSentiment:SentimentIntensityAnalyzer")
    assert set(found) == {"vaderSentiment/vaderSentiment.py", "vaderSentiment/__init__.py"} & set(found)
    assert "vaderSentiment/vaderSentiment.py" in found


def test_scorers_of_ours_are_their_packages_versions() -> None:
    assert list(scorer_contents("sentiment")) == ["vaderSentiment"]
    assert list(scorer_contents("offence")) == ["alt-profanity-check", "scikit-learn"]


@pytest.mark.parametrize("name", sorted(EXACT))
def test_an_exact_scorer_is_the_file_that_counts_and_no_other(name: str) -> None:
    assert list(scorer_contents(name)) == list(load_scorer(name).contents()) == ["exact_scorers.py"]


@pytest.mark.parametrize("name", ["no_such_module:f", "nowhere.py:f", "words", "a/b c", "owner/no-such-model", ""])
def test_a_name_that_stands_for_nothing_has_no_content(name: str) -> None:
    assert scorer_contents(name) == {}


def test_a_function_is_its_code() -> None:
    class Score:
        def __call__(self, prompts: object, texts: object) -> list[float]:
            return []

    assert "test_contents.py" in " ".join(callable_contents(test_a_function_is_its_code))
    assert callable_contents(Score()) == callable_contents(test_a_function_is_its_code)
    assert callable_contents(eval("lambda prompts, texts: []")) == {}


MODEL = {
    "model.safetensors": "weights",
    "config.json": "{}",
    "tokenizer.model": "pieces",
    "merges.txt": "a b",
    "chat_template.jinja": "{{ x }}",
    "additional_chat_templates/tool.jinja": "{{ y }}",
    "modeling.py": "z = 1",
}


@pytest.mark.parametrize("name", MODEL)
def test_a_model_is_all_that_a_loader_reads(tmp_path: Path, name: str) -> None:
    _write(tmp_path, MODEL)
    before = model_contents(str(tmp_path))
    (tmp_path / "README.md").write_text("read me")
    assert model_contents(str(tmp_path)) == before
    (tmp_path / name).write_text(MODEL[name] + "!")
    assert model_contents(str(tmp_path)) != before


@pytest.mark.parametrize("said_by", ["guide.json", "adapter_config.json"])
def test_an_adapter_is_its_base_too(tmp_path: Path, said_by: str) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    _write(base, MODEL)
    card = {"format": 1, "base": {"name": str(base)}}
    content = card if said_by == "guide.json" else {"base_model_name_or_path": str(base)}
    _write(adapter, {"adapter_model.safetensors": "low rank", said_by: json.dumps(content)})
    before = model_contents(str(adapter))
    assert set(before) == {"files", "base"}
    (base / "model.safetensors").write_text("retrained")
    after = model_contents(str(adapter))
    assert (after["files"], after["base"] != before["base"]) == (before["files"], True)


def test_a_file_of_the_hubs_cache_is_not_read_again(tmp_path: Path) -> None:
    """It is a link to a blob whose name is its digest."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    digests = ["a" * 64, "b" * 64]
    for digest in digests:
        (blobs / digest).write_text("the same")
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blobs / digests[0], snapshot))
    before = path_digest(snapshot)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blobs / digests[1], snapshot))
    assert path_digest(snapshot) != before
    shutil.copytree(snapshot, tmp_path / "copy")
    assert path_digest(tmp_path / "copy") != before
