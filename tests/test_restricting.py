"""A policy restricted to what is allowed."""

from __future__ import annotations

import torch

from trimtab.mixing.restricting import restricted


def test_a_row_is_normalised_over_what_is_allowed_and_others_stay() -> None:
    base = torch.log_softmax(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    before = base.clone()
    allowed = torch.tensor([[True, False, True, False, False], [False] * 5])
    found = restricted(base, torch.tensor([2, 0]), allowed)
    assert torch.equal(base, before)
    assert torch.equal(found[1], base[1])
    expected = base[2, [0, 2]].exp() / base[2, [0, 2]].exp().sum()
    torch.testing.assert_close(found[2, [0, 2]].exp(), expected)
    assert bool(torch.isneginf(found[2, [1, 3, 4]]).all())
    assert bool(torch.isneginf(found[0]).all()), "where nothing is allowed, nothing is possible, and no NaN appears"


def test_all_rows_and_what_the_base_forbids() -> None:
    base = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0], [torch.nan, torch.nan]])
    found = restricted(base, torch.arange(3), torch.tensor([[True, True], [True, False], [True, True]]))
    assert found[0].tolist() == [0.0, -torch.inf]
    assert bool(torch.isneginf(found[1]).all())
    assert bool(torch.isnan(found[2]).all())
    assert base[0].tolist() == [0.0, -torch.inf]
