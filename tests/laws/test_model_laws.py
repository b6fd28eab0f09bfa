"""Every model keeps every law."""

from __future__ import annotations

import pytest
import torch

from tests.laws.tiny_models import FAMILIES, PROMPTS, tiny_model
from trimtab.models.tabular import TabularModel
from trimtab.testing import check_model

TABULAR = {
    "whole prefix": TabularModel.random(6, seed=1),
    "last token": TabularModel.random(6, seed=2, order=1),
    "no context": TabularModel.random(6, seed=3, order=0),
    "table with zeros": TabularModel.of_table(torch.eye(5).masked_fill(torch.eye(5).flip(0) == 1, -torch.inf)),
    "short": TabularModel.random(6, seed=4, max_length=9),
}


@pytest.mark.parametrize("name", TABULAR)
def test_tabular_models(name: str) -> None:
    check_model(TABULAR[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_models(family: str) -> None:
    check_model(tiny_model(family), PROMPTS, num_candidates=2)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_longer_walk(seed: int) -> None:
    check_model(tiny_model("mistral"), PROMPTS, num_steps=12, num_candidates=2, seed=seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_worth_comparing(family: str) -> None:
    """A model that barely looks at its input would keep every law: the last token and an early one must both matter."""
    longest = PROMPTS[0]
    session = tiny_model(family).open()
    session.admit([longest, [*longest[:-1], 4], [*longest[:4], 4, *longest[5:]]])
    table = session.logprobs()
    assert (table[0] - table[1]).abs().max() > 0.5
    assert (table[0] - table[2]).abs().max() > 0.01
