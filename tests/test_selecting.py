"""Candidates and the walk over them, on tables small enough to check by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from trimtab.core import Candidates, Selection
from trimtab.mixing.rules import NEVER, FirstAccepted, MostAccepted
from trimtab.mixing.selecting import Begun, Walk, survivors, walk
from trimtab.mixing.significance import SignificanceGate, certainty, least_significance


def plain_survivors(row: Tensor, top_k: int, top_p: float, min_p: float) -> list[int]:
    """transformers' own filters, then a sort by probability and id."""
    filters = LogitsProcessorList()
    if top_k:
        filters.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        filters.append(TopPLogitsWarper(top_p))
    if min_p:
        filters.append(MinPLogitsWarper(min_p))
    kept = filters(torch.zeros(1, 1, dtype=torch.long), row[None])[0]
    return sorted((kept > NEVER).nonzero().squeeze(1).tolist(), key=lambda token: (-float(row[token]), token))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        ([5, 3, 9], [1.0, 0.9, 0.5], [0.0, 0.0, 0.1]),
        ([0, 4, 2], [0.8, 1.0, 0.7], [0.0, 0.3, 0.0]),
        ([50] * 3, [0.99] * 3, [0.0] * 3),
    ],
)
def test_survivors_are_those_of_the_filters_one_row_at_a_time(
    seed: int, top_k: list[int], top_p: list[float], min_p: list[float]
) -> None:
    torch.manual_seed(seed)
    policy = torch.log_softmax(torch.randn(3, 40) * 2, -1)
    options = {"top_k": torch.tensor(top_k), "top_p": torch.tensor(top_p).double(), "min_p": torch.tensor(min_p)}
    candidates, counts = survivors(policy, **options)
    assert candidates.token_ids.shape[1] == int(counts.max())
    for row in range(3):
        count = int(counts[row])
        expected = plain_survivors(policy[row], top_k[row], top_p[row], min_p[row])
        assert candidates.token_ids[row, :count].tolist() == expected
        assert torch.equal(candidates.logprobs[row, :count], policy[row, expected])
        assert bool((candidates.logprobs[row, count:] == NEVER).all())


def test_equals_come_in_the_order_of_their_ids_and_none_is_lost() -> None:
    """Four tokens tie for the second place, more than the columns that top-k would look at: all of them stay."""
    policy = torch.log_softmax(torch.tensor([[0.0, 1.0, 0.0, 2.0, 1.0, 1.0, 1.0, -1.0, -2.0]]), -1)
    one = torch.ones(1)
    candidates, counts = survivors(policy, top_k=torch.tensor([2]), top_p=one.double(), min_p=0 * one)
    assert counts.tolist() == [5]
    assert candidates.token_ids.tolist() == [[3, 1, 4, 5, 6]]


SCORES = torch.tensor([[-1.0, -1.0, 2.0, -1.0, 3.0, -1.0], [5.0] * 6, [-1.0] * 6, [7.0] * 6])
COUNTS = torch.tensor([6, 4, 5, 1])


def tell(selection: Selection) -> tuple[list[tuple[list[int], int]], Tensor, Tensor]:
    """Which rows were looked at with how many columns, the weighted scores, and which were asked about."""
    seen: list[tuple[list[int], int]] = []
    asked_rows: set[int] = set()
    base = torch.log_softmax(torch.arange(6, 0, -1.0), 0).repeat(4, 1)
    base = base.masked_fill(torch.arange(6) >= COUNTS[:, None], NEVER)

    def look(rows: Tensor, some: Candidates, asked: Tensor) -> Tensor:
        seen.append((rows.tolist(), some.token_ids.shape[1]))
        asked_rows.update(rows[asked].tolist())
        assert bool((some.logprobs > NEVER).all()), "padding was looked at"
        return SCORES[rows[:, None], some.token_ids]

    ids = torch.arange(6).repeat(4, 1)
    found = walk(Candidates(ids, base), COUNTS, torch.full((4,), 0.5), selection, look)
    assert not bool(found.broken.any())
    return seen, found.weighted, torch.tensor(sorted(asked_rows))


def test_rows_leave_as_soon_as_they_are_decided() -> None:
    seen, weighted, asked = tell(Selection(FirstAccepted(), looks=(1, 2, 3)))
    assert seen == [([0, 1, 2, 3], 1), ([0, 2], 2), ([2], 2)]
    assert asked.tolist() == [0, 1, 2], "a single candidate was asked about"
    assert weighted[0].tolist() == [-1.0, -1.0, 2.0, NEVER, NEVER, NEVER]
    assert weighted[1].tolist() == [5.0] + [NEVER] * 5
    assert weighted[2].tolist() == [-1.0] * 5 + [NEVER]
    assert weighted[3].tolist() == [NEVER] * 6


@pytest.mark.parametrize("selection", [Selection(MostAccepted()), Selection(FirstAccepted(), looks=())])
def test_a_rule_that_needs_all_verdicts_looks_once(selection: Selection) -> None:
    seen, weighted, _ = tell(selection)
    assert seen == [([0, 1, 2, 3], 6)]
    assert weighted[1].tolist() == [5.0] * 4 + [NEVER] * 2


@pytest.mark.parametrize("rule", [FirstAccepted(fallback="last"), MostAccepted(), FirstAccepted()])
def test_a_closed_gate_ends_a_walk_with_its_first_candidate_and_opens_no_wider_look(
    rule: FirstAccepted | MostAccepted,
) -> None:
    """Of rows 0 and 2, which reject their first candidate alike, 0 has a gate that is closed and 2 one that is open."""
    seen: list[tuple[list[int], int]] = []
    scores = SCORES.clone()
    scores[2, 4] = 1.0

    def look(rows: Tensor, some: Candidates, asked: Tensor) -> Tensor:
        seen.append((rows.tolist(), some.token_ids.shape[1]))
        return scores[rows[:, None], some.token_ids]

    surprisal = torch.tensor([0.5, torch.nan, 0.5, 0.5], dtype=torch.float64)
    certainty = math.log(2) - sum(-p * math.log(p) for p in (1 / (1 + math.e), math.e / (1 + math.e)))
    least = torch.tensor([0.5 * certainty + 1e-4, torch.nan, 0.5 * certainty - 1e-4, 9.0], dtype=torch.float64)
    candidates = Candidates(torch.arange(6).repeat(4, 1), torch.zeros(4, 6))
    counts = torch.tensor([6, 4, 5, 1])
    gate = SignificanceGate(surprisal, least)
    half = torch.full((4,), 0.5)
    found = walk(candidates, counts, half, Selection(rule, looks=(4, 9)), look, gate=gate)
    assert seen[0] == ([0, 1, 2, 3], 1)
    assert all(0 not in rows for rows, _ in seen[1:])
    assert found.closed.tolist() == [True, False, False, False]
    assert found.significance.tolist() == pytest.approx(
        [0.5 * certainty, math.nan, 0.5 * certainty, math.nan], nan_ok=True
    )
    assert found.policy(rule)[0].exp().tolist() == [1.0] + [0.0] * 5
    assert torch.equal(found.policy(rule)[1:], rule.policy(candidates, found.weighted)[1:])
    assert int(found.policy(rule)[2].argmax()) == 4
    plain = walk(candidates, counts, half, Selection(rule, looks=(4, 9)), look)
    assert not bool(plain.closed.any())
    assert bool(plain.significance.isnan().all())


def test_certainty_is_the_divergence_from_an_even_guess() -> None:
    odds = torch.tensor([0.0, 1e-4, -1.0, 3.0, 80.0, torch.inf, -torch.inf, torch.nan])
    found = certainty(odds).tolist()
    for value, score in zip(found[:4], odds.tolist(), strict=False):
        chances = 1 / (1 + math.exp(-score)), 1 / (1 + math.exp(score))
        assert value == pytest.approx(sum(p * math.log(2 * p) for p in chances), abs=1e-15)
    assert found[1] == pytest.approx(1e-8 / 8, rel=1e-3)
    assert found[4:7] == pytest.approx([math.log(2)] * 3)
    assert math.isnan(found[7])


def test_a_gate_is_open_at_its_threshold_and_closed_below_it() -> None:
    odds, nan = torch.tensor([1.0, 1.0, 0.0, torch.nan, 1.0]), torch.nan
    value = float(SignificanceGate(torch.tensor([0.5]).double(), torch.zeros(1).double()).significance(odds[:1]))
    surprisal = torch.tensor([0.5, 0.5, 0.5, 0.5, nan], dtype=torch.float64)
    least = torch.tensor([value, math.nextafter(value, 1.0), 0.0, 1.0, nan], dtype=torch.float64)
    gate = SignificanceGate(surprisal, least)
    assert gate.closed(odds).tolist() == [False, True, False, False, False]
    assert gate.gated.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("num", range(1, 11))
def test_ten_significances_alike_are_no_less_than_their_mean(num: int) -> None:
    torch.manual_seed(num)
    for value in torch.rand(500).tolist():
        assert least_significance(1.0, [value] * num) == value
    assert least_significance(3.0, []) == 0.0


def test_nothing_is_looked_at_where_every_row_has_one_candidate() -> None:
    one = Candidates(torch.tensor([[4], [2]]), torch.zeros(2, 1))
    found = walk(one, torch.ones(2, dtype=torch.long), torch.full((2,), 0.5), Selection(FirstAccepted()), _never)
    assert bool(torch.isneginf(found.weighted).all())


def _never(rows: Tensor, some: Candidates, asked: Tensor) -> Tensor:
    raise AssertionError("looked")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_score_that_no_guide_may_give_marks_its_row(bad: float) -> None:
    def look(rows: Tensor, some: Candidates, asked: Tensor) -> Tensor:
        return torch.where(rows[:, None] == 1, bad, -1.0).expand(len(rows), some.token_ids.shape[1])

    both = Candidates(torch.arange(3).repeat(2, 1), torch.zeros(2, 3))
    found = walk(both, torch.tensor([3, 3]), torch.full((2,), 0.5), Selection(FirstAccepted()), look)
    assert found.broken.tolist() == [False, True]


def test_a_lazy_rule_looks_at_as_many_candidates_as_pay_and_others_at_all() -> None:
    asked: list[tuple[int, int]] = []

    def look(rows: Tensor, some: Candidates, asked_about: Tensor) -> Tensor:
        asked.append((len(rows), some.token_ids.shape[1]))
        return SCORES[rows[:, None], some.token_ids]

    candidates = Candidates(torch.arange(6).repeat(4, 1), torch.zeros(4, 6))
    for selection, expected in (
        (Selection(FirstAccepted()), [(4, 2), (2, 3)]),
        (Selection(FirstAccepted(), looks=(3,)), [(4, 3), (1, 2)]),
        (Selection(MostAccepted()), [(4, 6)]),
    ):
        asked.clear()
        walk(candidates, COUNTS, torch.full((4,), 0.5), selection, look, pays=lambda rows: 2 if rows > 2 else 3)
        assert asked == expected


@pytest.mark.parametrize("looks", [(1,), (2, 3), (5, 1), ()])
@pytest.mark.parametrize("patience", [1, 2])
def test_walks_that_end_early_and_are_gone_on_with_come_to_what_one_walk_does(
    looks: tuple[int, ...], patience: int
) -> None:
    """Nothing is looked at twice, and nobody who is decided is looked at again."""
    selection = Selection(FirstAccepted(), looks=looks)
    rows, begun, seen = [0, 1, 2, 3], [None] * 4, []
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def look(which: Tensor, some: Candidates, asked: Tensor) -> Tensor:
        here = torch.tensor(rows)[which]
        for row, ids in zip(here.tolist(), some.token_ids.tolist(), strict=True):
            seen.extend((row, token) for token in dict.fromkeys(ids))
        return SCORES[here[:, None], some.token_ids]

    def go(begun: list[Begun | None], ends: Callable[[Tensor], bool] | None) -> Walk:
        candidates = Candidates(torch.arange(6).repeat(len(rows), 1), torch.zeros(len(rows), 6))
        return walk(candidates, COUNTS[rows], torch.full((len(rows),), 0.5), selection, look, begun=begun, ends=ends)

    whole, seen_whole = go(begun, None), list(seen)
    seen.clear()
    while rows:
        left = iter(range(patience))
        part = go(begun, lambda decided, left=left: next(left, None) == patience - 1)
        found |= {row: (part.scores[at], part.weighted[at]) for at, row in enumerate(rows) if at not in part.left}
        begun, rows = list(part.left.values()), [rows[at] for at in part.left]
    for row, (scores, weighted) in found.items():
        assert torch.equal(scores.nan_to_num(99.0), whole.scores[row].nan_to_num(99.0))
        assert torch.equal(weighted, whole.weighted[row])
    assert sorted(found) == [0, 1, 2, 3]
    real = [(row, token) for row, token in seen if token < int(COUNTS[row]) - 1]
    assert len(real) == len(set(real))
    assert set(seen) == set(seen_whole)
