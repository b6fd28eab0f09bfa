"""Tiny transformers models as the laws are run on them, and prompts to run them with."""

from __future__ import annotations

from functools import cache

from tests.tiny import FAMILIES, tiny_module
from trimtab.models.hf import HFModel

__all__ = ["FAMILIES", "PROMPTS", "tiny_model"]

PROMPTS = [
    [7, 3, 22, 31, 5, 5, 18, 39, 1, 12, 30, 44, 60, 2, 8],
    [9],
    [2, 2, 17, 33, 8, 26],
    [14, 0, 39],
]
"""Prompts of unequal length; three layers with a window of 5 see 13 tokens, fewer than the first prompt has."""


@cache
def tiny_model(family: str) -> HFModel:
    """One model for each family; nothing writes to it."""
    return HFModel(tiny_module(family))
