"""Every rule keeps every law."""

from __future__ import annotations

import pytest

from trimtab.rules import Tilt
from trimtab.testing import check_rule


@pytest.mark.parametrize("seed", range(5))
def test_tilt(seed: int) -> None:
    check_rule(Tilt(), seed=seed)
