"""What every test may ask for. Keep it short: a fixture that one file uses belongs in that file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports a hub client: no test may depend on what the network serves today.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Preference data and prompts that lie beside the checkout; not every machine has them."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the preference data in ../shared/data, which is not on this machine")
    return path
