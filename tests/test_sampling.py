"""Filters and the draw against naive references, and against transformers' own warpers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from trimtab import sampling
from trimtab.rules import NEVER
from trimtab.sampling import (
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
        torch.tensor([0.3, 0.9], dtype=torch.float64),
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
    for u in (0.0, 0.5, 1 - 2**-53):
        uniforms = torch.full((2,), u, dtype=torch.float64)
        for temperature in (zero, torch.tensor([0.0, 1e-30])):
            chosen = sample(table, uniforms, temperature=temperature, top_k=off, top_p=zero + 1, min_p=zero)
            assert chosen.tolist()[0] == 1
        chosen = sample(table, uniforms, temperature=zero, top_k=off, top_p=zero + 1, min_p=zero)
        assert chosen.tolist() == [1, 0]


def naive_draw(row: list[float], u: float) -> int:
    masses = [math.exp(x - max(row)) for x in row]
    reached, goal, chosen = 0.0, u * sum(masses), 0
    for i, mass in enumerate(masses):
        if mass > 0:
            reached, chosen = reached + mass, i
            if reached > goal:
                break
    return chosen


@untimed
@given(tables(), st.lists(st.sampled_from([0.0, 2**-60, 1 - 2**-53, 1.0]) | st.floats(0, 1), min_size=1, max_size=4))
def test_draw_agrees_with_a_loop(table: Tensor, us: list[float]) -> None:
    uniforms = torch.tensor([us[i % len(us)] for i in range(len(table))], dtype=torch.float64)
    cumulative = table.double().softmax(1).cumsum(1)
    # Within rounding of a step either side is right, except at the ends.
    clear = ((cumulative - uniforms[:, None]).abs() > 1e-9).all(1) | (uniforms < 1e-9) | (uniforms > 1 - 1e-9)
    assume(bool(clear.all()))
    chosen = draw(table, uniforms)
    assert chosen.tolist() == [naive_draw(r, u) for r, u in zip(table.tolist(), uniforms.tolist(), strict=True)]


def test_draw_at_the_edges_never_takes_the_impossible() -> None:
    table = torch.tensor([[NEVER, 0.0, NEVER, -50.0, NEVER, -200.0, NEVER]])
    ends = torch.tensor([0.0, 1 - 2**-53, 1.0], dtype=torch.float64)
    # −50 is 2e-22 of the mass: adding it changes no float64 sum, so it is not reached; position 1 is all there is.
    assert draw(table.expand(3, -1), ends).tolist() == [1, 1, 1]
    table = torch.tensor([[NEVER, 0.0, NEVER, -5.0, NEVER]])
    assert draw(table.expand(3, -1), ends).tolist() == [1, 3, 3]


def test_draw_reaches_a_tail_that_single_precision_cannot_add() -> None:
    """40 000 tokens of 2e-9 after one of nearly 1: adding one to 1 in float32 changes nothing."""
    table = torch.full((1, 40_001), -20.0)
    table[0, 0] = 0.0
    tail = 40_000 * math.exp(-20)
    halfway = torch.tensor([1 - 0.5 * tail / (1 + tail)], dtype=torch.float64)
    assert abs(int(draw(table, halfway)) - 20_000) <= 1


def test_draw_survives_a_parallel_cumulative_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA adds in blocks, so the sum may rise by a rounding error where there is no mass."""
    table = torch.tensor([[0.0, NEVER, 0.0]])
    monkeypatch.setattr(
        torch.Tensor, "cumsum", lambda self, dim: torch.tensor([[1.0, 1.0 + 2e-16, 2.0]], dtype=torch.float64)
    )
    assert draw(table, torch.tensor([0.5], dtype=torch.float64)).tolist() != [1]


def test_draw_follows_the_distribution() -> None:
    """20 000 draws at equally spaced uniforms: every count is right to within one draw; random ones pass chi-square."""
    policy = torch.tensor([[0.05, 0.0, 0.25, 0.3, 0.4]]).log()
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    counts = draw(policy.expand(20_000, -1), grid).bincount(minlength=5)
    assert ((counts - policy.exp()[0] * 20_000).abs() <= 1).all()
    uniforms = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    counts = draw(policy.expand(20_000, -1) - 3.0, uniforms).bincount(minlength=5)
    possible = torch.tensor([0, 2, 3, 4])
    expected = policy.exp()[0, possible].double()
    assert chisquare(counts[possible], expected / expected.sum() * 20_000).pvalue > 1e-4  # false alarms: 1 seed in 1e4


def test_the_order_is_temperature_then_top_k_then_top_p_then_min_p() -> None:
    """Each pair of neighbours in the chain is told apart by a case in which the other order leaves other tokens."""
    table = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    grid = torch.linspace(0, 1 - 2**-53, 2001, dtype=torch.float64)

    def reachable(temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
        n = len(grid)
        chosen = sample(
            table.expand(n, -1),
            grid,
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
