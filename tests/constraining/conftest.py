"""A tiny model that can write any text, and one whose answers can be listed."""

from __future__ import annotations

import pytest

from tests.tiny import byte_llama, byte_tokenizer
from trimtab import HFModel

pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'trimtab[structured]'")


@pytest.fixture(scope="package")
def writer() -> HFModel:
    """Bytes are its tokens."""
    tokenizer = byte_tokenizer()
    return HFModel(byte_llama(tokenizer, max_length=600), tokenizer)
