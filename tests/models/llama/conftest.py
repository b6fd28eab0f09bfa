"""GGUF files in float32, written once for all of these tests, and a cache of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny_gguf import gguf_module, write_gguf
from trimtab.models.llama.library import is_installed


@pytest.fixture(scope="session")
def needs_llama() -> None:
    """Skip a test where no binding of llama.cpp is installed."""
    if not is_installed():
        pytest.skip('needs llama.cpp (pip install "trimtab[llama]", or make test-llama), which is not installed here')


@pytest.fixture(scope="session")
def module() -> Any:
    """The transformers model that `file` was written from."""
    return gguf_module()


@pytest.fixture(scope="session")
def file(module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of llama's architecture, as a GGUF file in float32."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", module)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is remembered between runs is remembered for these tests alone."""
    directory = tmp_path_factory.getbasetemp() / "llama-cache"
    monkeypatch.setenv("TRIMTAB_CACHE", str(directory))
    return directory
