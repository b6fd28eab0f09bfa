"""Filters and the draw against naive references, and against transformers' own warpers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from trimtab.mixing import sampling
from trimtab.mixing.noise import race_times, step_keys
from trimtab.mixing.rules import NEVER
from trimtab.mixing.sampling import (
    apply_temperature,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    plausible,
    sample,
)

untimed = settings(deadline=None)

# Halves, so that ties are common and every sum of them is exact in binary.
halved = st.integers(0, 6).map(lambda n: -n * math.log(2))
entry = st.one_of(halved, halved, st.just(NEVER))


@st.composite
def tables(draw_from: st.DrawFn) -> Tensor:
    """[B, K] log-probabilities with ties and −inf, no row empty, normalised or not."""
    width = draw_from(st.integers(1, 12))
    row = st.lists(entry, min_size=width, max_size=width).filter(lambda r: max(r) > NEVER)
    table = torch.tensor(draw_from(st.lists(row, min_size=1, max_size=4)))
    return table.log_softmax(1) if draw_from(st.booleans()) else table


def keys_of(num: int, *, position: int = 0) -> Tensor:
    """Keys of seeds 0, 1, 2, ..."""
    return step_keys([(seed, position) for seed in range(num)], "cpu")


def per_row(table: Tensor, values: list[float]) -> Tensor:
    return torch.tensor([values[i % len(values)] for i in range(len(table))])


def kept(table: Tensor) -> list[list[int]]:
    """The columns of each row that are not at −inf."""
    return [row.isfinite().nonzero().squeeze(1).tolist() for row in table]


def assert_only_drops(before: Tensor, after: Tensor) -> None:
    """What survives is bit for bit what it was, and something does."""
    assert torch.equal(torch.where(after == NEVER, NEVER, before), after)
    assert after.isfinite().any(1).all()


def naive_top_k(row: list[float], k: int) -> list[int]:
    floor = sorted(row, reverse=True)[min(k, len(row)) - 1] if k > 0 else NEVER
    return [i for i, x in enumerate(row) if x >= floor and x > NEVER]


def naive_top_p(row: list[float], p: float) -> list[int]:
    masses = sorted((math.exp(x - max(row)) for x in row), reverse=True)
    reached, floor = 0.0, 0.0
    for mass in masses:
        reached, floor = reached + mass / math.fsum(masses), mass
        if reached >= p - 1e-9:
            break
    return [i for i, x in enumerate(row) if math.exp(x - max(row)) >= floor and x > NEVER]


@untimed
@given(tables(), st.lists(st.integers(0, 14), min_size=1, max_size=4))
def test_top_k_agrees_with_a_sort(table: Tensor, ks: list[int]) -> None:
    top_k = per_row(table, ks).to(torch.int64)
    result = keep_top_k(table, top_k)
    assert_only_drops(table, result)
    assert kept(result) == [naive_top_k(r, k) for r, k in zip(table.tolist(), top_k.tolist(), strict=True)]


@untimed
@given(tables(), st.lists(st.floats(0, 1), min_size=1, max_size=4), st.sampled_from([(1,), (2, 5), (256, 4096)]))
def test_top_p_agrees_with_a_sort(table: Tensor, ps: list[float], windows: tuple[int, ...]) -> None:
    # A goal within rounding of a partial sum may fall either way: keep clear of those.
    top_p = torch.round(per_row(table, ps) * 1000).double() / 1000 - 0.00031
    top_p = torch.where(per_row(table, ps) == 1, 1.0, top_p.clamp(min=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "WINDOWS", windows)
        result = keep_top_p(table, top_p)
    assert_only_drops(table, result)
    assert kept(result) == [
        naive_top_p(r, p) if p < 1 else naive_top_k(r, 0) for r, p in zip(table.tolist(), top_p.tolist(), strict=True)
    ]


def test_top_p_reaches_its_goal_exactly() -> None:
    quarters = torch.full((1, 4), 0.25).log() - torch.tensor([[0.0, 0.1, 0.2, 0.3]])
    for count in range(1, 5):
        masses = (quarters - quarters[0, 0]).double().exp()
        mass = (masses / masses.sum()).cumsum(1)[0, count - 1]
        assert kept(keep_top_p(quarters, mass[None] - 1e-12)) == [list(range(count))]
        assert kept(keep_top_p(quarters, mass[None])) == [list(range(count))]
        if count < 4:
            assert kept(keep_top_p(quarters, mass[None] + 1e-12)) == [list(range(count + 1))]


@untimed
@given(tables(), st.lists(st.sampled_from([0.0, 0.01, 0.25, 0.3, 0.5, 1.0]), min_size=1, max_size=4))
def test_min_p_agrees_with_its_definition(table: Tensor, fractions: list[float]) -> None:
    # −1e-6 relative: 0.25 and 0.5 are ratios that the table holds, up to rounding of their logarithms.
    min_p = per_row(table, fractions) * (1 - 1e-6)
    result = keep_min_p(table, min_p)
    assert_only_drops(table, result)
    ratios = (table.double() - table.double().amax(1, keepdim=True)).exp()
    expected = (ratios >= min_p[:, None].double() * (1 - 1e-6)) & (table > NEVER)
    assert torch.equal(result.isfinite(), expected)


@untimed
@given(tables(), st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_plausible_keeps_what_min_p_would(table: Tensor, alpha: float) -> None:
    mask = plausible(table, torch.full((len(table),), alpha))
    filtered = keep_min_p(table, torch.full((len(table),), alpha))
    assert torch.equal(table.masked_fill(~mask, NEVER), filtered)
    if alpha == 0:
        assert mask.all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_filters_agree_with_transformers(seed: int, scale: float) -> None:
    table = (torch.randn(3, 3000, generator=torch.Generator().manual_seed(seed)) * scale).log_softmax(1)
    table[:, ::7] = NEVER
    ids = torch.zeros(3, 1, dtype=torch.int64)
    for k in (1, 5, 300, 2999):
        assert torch.equal(keep_top_k(table, torch.full((3,), k)), TopKLogitsWarper(k)(ids, table))
    for p in (0.0, 0.1, 0.5, 0.9, 0.97):
        assert torch.equal(keep_top_p(table, torch.full((3,), p)), TopPLogitsWarper(p)(ids, table))
    for p in (0.001, 0.05, 0.5, 1.0):
        assert torch.equal(keep_min_p(table, torch.full((3,), p)), MinPLogitsWarper(p)(ids, table))


def test_each_row_has_its_own_parameters() -> None:
    table = torch.randn(4, 50).log_softmax(1)
    ks, ps = torch.tensor([0, 3, 50, 1]), torch.tensor([1.0, 0.4, 0.9, 0.0])
    for i in range(4):
        row = slice(i, i + 1)
        assert torch.equal(keep_top_k(table, ks)[row], keep_top_k(table[row], ks[row]))
        assert torch.equal(keep_top_p(table, ps)[row], keep_top_p(table[row], ps[row]))
        assert torch.equal(keep_min_p(table, ps / 2)[row], keep_min_p(table[row], ps[row] / 2))
        assert torch.equal(apply_temperature(table, ps)[row], apply_temperature(table[row], ps[row]))
        assert torch.equal(plausible(table, ps / 2)[row], plausible(table[row], ps[row] / 2))


def test_a_filter_that_no_row_uses_returns_its_argument() -> None:
    table, off = torch.randn(2, 5), torch.zeros(2)
    assert keep_top_k(table, off.to(torch.int64)) is table
    assert keep_top_k(table, torch.tensor([5, 9])) is table
    assert keep_top_p(table, off + 1) is table
    assert keep_min_p(table, off) is table
    assert apply_temperature(table, off + 1) is table
    assert penalise_repetition(table, torch.ones(2, 5, dtype=torch.bool), off + 1) is table


def test_filters_leave_their_argument_alone() -> None:
    table = torch.randn(2, 50).log_softmax(1)
    before = table.clone()
    sample(
        table,
        torch.tensor([3, 9]),
        temperature=torch.tensor([0.0, 0.7]),
        top_k=torch.tensor([5, 0]),
        top_p=torch.tensor([0.5, 0.9]),
        min_p=torch.tensor([0.1, 0.01]),
    )
    penalise_repetition(table, table > -4, torch.tensor([1.5, 2.0]))
    assert torch.equal(table, before)


def test_penalty_divides_the_probability_of_seen_tokens() -> None:
    table = torch.tensor([[0.5, 0.5, 0.0]] * 3).log()
    seen = torch.tensor([[True, False, True]] * 3)
    result = penalise_repetition(table, seen, torch.tensor([2.0, 1.0, 0.5]))
    torch.testing.assert_close(result.exp(), torch.tensor([[0.25, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.5, 0.0]]))
    assert torch.equal(result[1], table[1])


@pytest.mark.parametrize("t", [0.3, 1.7, 25.0])
def test_temperature_is_a_normalised_power(t: float) -> None:
    table = torch.randn(2, 30).log_softmax(1)
    table[0, 3] = NEVER
    power = table.exp().double() ** (1 / t)
    result = apply_temperature(table, torch.tensor([t, 1.0]))
    torch.testing.assert_close(result[0].exp().double(), power[0] / power[0].sum(), atol=1e-6, rtol=1e-5)
    assert torch.equal(result[1], table[1])


@pytest.mark.parametrize("t", [1e-40, 1e-30, 1e-6])
def test_a_tiny_temperature_is_nearly_greedy_and_finite(t: float) -> None:
    table = torch.tensor([[0.2, 0.5, 0.3]]).log()
    torch.testing.assert_close(apply_temperature(table, torch.tensor([t])).exp(), torch.tensor([[0.0, 1.0, 0.0]]))


def test_temperature_zero_takes_the_first_of_the_best() -> None:
    table = torch.tensor([[0.2, 0.4, 0.4], [0.4, 0.2, 0.4]]).log()
    zero, off = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    assert apply_temperature(table, zero).tolist() == [[NEVER, 0.0, NEVER], [0.0, NEVER, NEVER]]
    for number in range(5):
        keys = keys_of(2, position=number)
        for temperature in (zero, torch.tensor([0.0, 1e-30])):
            chosen = sample(table, keys, temperature=temperature, top_k=off, top_p=zero + 1, min_p=zero)
            assert chosen.tolist()[0] == 1
        chosen = sample(table, keys, temperature=zero, top_k=off, top_p=zero + 1, min_p=zero)
        assert chosen.tolist() == [1, 0]


def naive_draw(row: list[float], key: int, ids: Sequence[int]) -> int:
    """The race told token by token."""
    times = race_times(torch.tensor([key]), torch.tensor([list(ids)]))[0].tolist()
    leads = [x - math.log(time) if x > NEVER else NEVER for x, time in zip(row, times, strict=True)]
    return max(range(len(row)), key=leads.__getitem__)


@untimed
@given(tables(), st.integers(0, 1000))
def test_draw_agrees_with_a_loop(table: Tensor, position: int) -> None:
    keys = keys_of(len(table), position=position)
    ids = torch.arange(100, 100 + table.shape[1]).flip(0).expand(len(table), -1)
    rows = list(zip(table.tolist(), keys.tolist(), strict=True))
    assert draw(table, keys).tolist() == [naive_draw(row, key, range(len(row))) for row, key in rows]
    assert draw(table, keys, ids).tolist() == [naive_draw(row, key, ids[0].tolist()) for row, key in rows]


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 4096])
def test_looking_into_few_blocks_finds_what_looking_into_all_does(size: int, scale: float) -> None:
    """Flat tables and peaked ones, some tokens at −inf, a last block that is not whole."""
    table = torch.randn(40, size, generator=torch.Generator().manual_seed(size)) * scale
    table[:, 1::3] = NEVER
    keys = keys_of(40)
    everywhere = draw(table, keys, torch.arange(size).expand(40, -1))
    assert draw(table, keys).tolist() == everywhere.tolist()


def test_draw_never_takes_the_impossible_and_reaches_the_unlikely() -> None:
    table = torch.tensor([[NEVER, 0.0, NEVER, -5.0, NEVER]]).expand(20_000, -1)
    counts = draw(table, keys_of(20_000)).bincount(minlength=5).tolist()
    assert [counts[place] for place in (0, 2, 4)] == [0, 0, 0]
    assert abs(counts[3] - 20_000 * math.exp(-5) / (1 + math.exp(-5))) < 40
    only = torch.full((50, 300), NEVER)
    only[:, 257] = -80.0
    assert draw(only, keys_of(50)).tolist() == [257] * 50


def test_draw_reaches_a_tail_that_single_precision_cannot_add() -> None:
    """40 000 tokens of 5e-5 of the mass in all, after one of nearly 1: adding one of them to 1 in float32 changes
    nothing, and a table of bits would be too coarse."""
    table = torch.full((1, 40_001), math.log(0.5 / 40_000))
    table[0, 0] = math.log(0.5)
    drawn = draw(table.expand(400, -1), keys_of(400))
    assert 150 < int((drawn == 0).sum()) < 250
    assert len(drawn.unique()) > 150


@pytest.mark.parametrize("size", [5, 200])
def test_draw_follows_the_distribution(size: int) -> None:
    """Chi-square over 40 000 draws, in one block and over several; the rare ones pooled."""
    policy = torch.randn(1, size, generator=torch.Generator().manual_seed(size)).log_softmax(1)
    policy[0, 1] = NEVER
    num = 40_000
    counts = draw(policy.expand(num, -1) - 3.0, keys_of(num, position=2)).bincount(minlength=size)
    expected = policy[0].double().exp() / policy.double().exp().sum() * num
    common = expected >= 5
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    wanted = [*expected[common].tolist(), expected[~common].sum().item()]
    assert counts[1] == 0
    if wanted[-1] < 5:
        observed, wanted = observed[:-1], [w * sum(observed[:-1]) / sum(wanted[:-1]) for w in wanted[:-1]]
    assert chisquare(observed, wanted).pvalue > 1e-4  # false alarms: 1 choice of seeds in 1e4


def test_the_order_is_temperature_then_top_k_then_top_p_then_min_p() -> None:
    """Each pair of neighbours in the chain is told apart by a case in which the other order leaves other tokens."""
    table = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def reachable(temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
        n = 2001
        chosen = sample(
            table.expand(n, -1),
            keys_of(n),
            temperature=torch.full((n,), temperature),
            top_k=torch.full((n,), top_k),
            top_p=torch.full((n,), top_p),
            min_p=torch.full((n,), min_p),
        )
        return set(chosen.tolist())

    assert reachable(1.0, 0, 1.0, 0.0) == {0, 1, 2, 3}
    assert reachable(0.5, 0, 0.8, 0.0) == {0, 1}  # before the temperature 0.4 + 0.3 < 0.8 would need a third
    assert reachable(1.0, 2, 0.55, 0.0) == {0}  # top-p first would see 0.4 < 0.55 and keep two
    assert reachable(0.5, 0, 1.0, 0.3) == {0, 1}  # min-p before the temperature would keep 0.2 / 0.4
    assert reachable(1.0, 0, 0.75, 0.4) == {0, 1, 2}  # min-p first would see 0.7 / 0.9 >= 0.75 and keep two
    assert reachable(1.0, 3, 0.75, 0.0) == {0, 1}  # 0.7 / 0.9 >= 0.75
