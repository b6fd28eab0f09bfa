"""The plug-in leaves a vLLM alone that it was not made for."""

from __future__ import annotations

import logging
import sys

import pytest

pytest.importorskip("vllm")

from trimtab.engines.vllm import plugin


def test_a_vllm_without_what_is_needed_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.config", None)  # importing it fails
    with caplog.at_level(logging.WARNING, logger="trimtab"):
        plugin.register()
    assert "guides were tested inside vLLM 0.32.x" in caplog.text
