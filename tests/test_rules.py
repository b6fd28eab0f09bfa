"""Mixing and tilting: what adds, what forbids, what may not happen."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.core import Candidates
from trimtab.mixing.rules import NEVER, Tilt, bad_rows, dead_end_rows, mix, not_finite_rows

untimed = settings(deadline=None)
finite = st.floats(-50, 50, width=32)
score = st.one_of(finite, st.just(NEVER))
weight = st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.0, 3.25])


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def policy(base: Tensor, scores: Tensor) -> Tensor:
    token_ids = torch.arange(base.shape[1]).expand(base.shape)
    return Tilt().policy(Candidates(token_ids, base, complete=True), scores)


def naive_mix(columns: list[list[float]], weights: list[float]) -> list[float]:
    """Element by element in Python: a guide at weight 0 is absent, −inf of any other forbids."""
    mixed = []
    for column in columns:
        used = [(w, s) for w, s in zip(weights, column, strict=True) if w != 0]
        mixed.append(NEVER if any(s == NEVER for _, s in used) else math.fsum(w * s for w, s in used))
    return mixed


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[float], list[list[float]]]:
    """The weights of some guides, and for each candidate its scores by them."""
    weights = draw(st.lists(weight, max_size=3))
    column = st.lists(score, min_size=len(weights), max_size=len(weights))
    return weights, draw(st.lists(column, min_size=1, max_size=5))


@untimed
@given(mixtures())
def test_mix_agrees_with_a_loop_over_elements(mixture: tuple[list[float], list[list[float]]]) -> None:
    weights, columns = mixture
    parts = [(torch.tensor([[c[i] for c in columns]]), torch.tensor([w])) for i, w in enumerate(weights)]
    mixed = mix(torch.zeros(1, len(columns)), parts)
    torch.testing.assert_close(mixed, tensor(naive_mix(columns, weights)), rtol=1e-5, atol=1e-4)


wide_and_narrow = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])


@wide_and_narrow
def test_mix_is_float32_whatever_comes_in(dtype: torch.dtype) -> None:
    scores, weights = tensor([1.0, 2.0]), torch.tensor([1 / 3])
    mixed = mix(torch.zeros(1, 2, dtype=dtype), [(scores.to(dtype), weights.double())])
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, scores * weights)


@pytest.mark.parametrize("nothing", [NEVER, math.nan, math.inf, 3.4e38])
def test_weight_zero_adds_nothing_bit_for_bit(nothing: float) -> None:
    one, other = torch.randn(2, 5), torch.randn(2, 5)
    other[1, 2] = nothing
    weights = torch.tensor([0.7, 0.7])
    alone = mix(one, [(one, weights)])
    beside = mix(one, [(other, torch.tensor([0.0, 0.0])), (one, weights), (other, torch.tensor([0.0, -0.0]))])
    assert torch.equal(alone, beside)


@pytest.mark.parametrize("w", [1.0, -1.0, 1e-30, -5.0])
def test_a_veto_holds_at_every_weight_but_zero(w: float) -> None:
    vetoing, generous = tensor([NEVER, 0.0]), tensor([1e30, 0.0])
    for parts in ([vetoing, generous], [generous, vetoing]):
        weights = [torch.tensor([w if part is vetoing else 1.0]) for part in parts]
        mixed = mix(torch.zeros(1, 2), list(zip(parts, weights, strict=True)))
        assert mixed.tolist() == [[NEVER, 0.0]]


def test_two_vetoes_at_opposite_weights_are_a_veto() -> None:
    veto = tensor([NEVER, 0.0])
    assert mix(veto, [(veto, torch.tensor([1.0])), (veto, torch.tensor([-1.0]))]).tolist() == [[NEVER, 0.0]]


def test_a_veto_hides_another_guides_nan_in_either_order() -> None:
    veto, broken, one = tensor([NEVER, 0.0]), tensor([math.nan, 0.0]), torch.tensor([1.0])
    assert mix(veto, [(veto, one), (broken, one)]).tolist() == [[NEVER, 0.0]]
    assert mix(veto, [(broken, one), (veto, one)]).tolist() == [[NEVER, 0.0]]


def test_not_finite_rows_finds_infinities_too() -> None:
    table = tensor([math.inf, 0.0], [math.nan, NEVER], [NEVER, 0.0], [NEVER, NEVER])
    assert not_finite_rows(table).tolist() == [True, True, False, False]
    assert bad_rows(table).tolist() == [True, True, False, True]


@pytest.mark.parametrize("w", [2.0, -2.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_score_stays_in_its_row_and_is_found(w: float, broken: float) -> None:
    mixed = mix(torch.zeros(2, 2), [(tensor([broken, 0.0], [1.0, 0.0]), torch.tensor([w, w]))])
    result = policy(torch.zeros(2, 2).log_softmax(1), mixed)
    assert not_finite_rows(result).tolist() == [True, False]
    assert bad_rows(result).tolist() == [True, False]


@pytest.mark.parametrize("s", [0.0, 1e30, math.inf, math.nan, NEVER])
def test_what_the_base_forbids_stays_forbidden(s: float) -> None:
    base = tensor([NEVER, math.log(0.25), math.log(0.75)])
    result = policy(base, tensor([s, 0.0, 0.0]))
    torch.testing.assert_close(result, base)


def test_a_guide_may_forbid() -> None:
    result = policy(tensor([0.5, 0.25, 0.25]).log(), tensor([NEVER, 0.0, 0.0]))
    torch.testing.assert_close(result.exp(), tensor([0.0, 0.5, 0.5]))


def test_tilt_is_the_normalised_product() -> None:
    base, guide = tensor([0.5, 0.3, 0.2]), tensor([0.1, 0.6, 0.3])
    product = base * guide**2
    torch.testing.assert_close(policy(base.log(), 2 * guide.log()).exp(), product / product.sum())


def test_tilt_ignores_a_constant_even_a_large_one() -> None:
    base, scores = torch.randn(3, 7).log_softmax(1), torch.randn(3, 7).round()
    torch.testing.assert_close(policy(base, scores + 64.0), policy(base, scores), atol=2e-5, rtol=0)


@wide_and_narrow
def test_tilt_is_float32(dtype: torch.dtype) -> None:
    base, scores = torch.randn(1, 9).log_softmax(1).to(dtype), torch.randn(1, 9).to(dtype)
    assert policy(base, scores).dtype == torch.float32
    assert torch.equal(policy(base, scores), policy(base.float(), scores.float()))


def test_every_candidate_masked_is_a_dead_end_of_its_row_only() -> None:
    base = torch.zeros(3, 2).log_softmax(1)
    base[1] = NEVER
    result = policy(base, tensor([NEVER, NEVER], [0.0, 0.0], [0.0, NEVER]))
    assert result.tolist() == [[NEVER, NEVER], [NEVER, NEVER], [0.0, NEVER]]
    assert dead_end_rows(result).tolist() == [True, True, False]
    assert not_finite_rows(result).tolist() == [False, False, False]
    assert bad_rows(result).tolist() == [True, True, False]
