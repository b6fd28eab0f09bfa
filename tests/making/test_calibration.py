"""What a calibration decides, on curves whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from trimtab.errors import InputError
from trimtab.making.calibration import Base, Decision, Point, decide

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
Curve = Callable[[float], float]


def curve(
    truth: Curve,
    *,
    seed: int = 0,
    num: int = 64,
    noise: float = 0.3,
    form: str = "shift",
    gold: Curve | None = None,
    cost: float = 1.0,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Base, list[Point]]:
    """Rewards around a true curve: prompts differ from each other, and each answer has noise of its own."""
    prompts = np.random.default_rng(10_000 + seed).normal(0, 0.5, num)
    draw = np.random.default_rng([seed, len(form)])

    def rewards(at: float, of: Curve) -> list[float]:
        return list(prompts + of(at) + draw.normal(0, noise, num))

    base = Base(rewards(0.0, truth), None if gold is None else rewards(0.0, gold))
    points = [
        Point(
            form,
            strength,
            rewards(strength, truth),
            list(cost * strength**2 + draw.normal(0, 0.01, num)),
            None if gold is None else rewards(strength, gold),
        )
        for strength in strengths
    ]
    return base, points


def hill(top: float, height: float = 1.0) -> Curve:
    """One peak at `top` in the logarithm of 1 + strength, 0 at strength 0."""
    return lambda s: height * (1 - (np.log1p(s) / np.log1p(top) - 1) ** 2)


def flat(_: float) -> float:
    return 0.0


@pytest.mark.parametrize("top", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_clear_peak_is_named_with_an_interval_around_it(top: float, seed: int) -> None:
    found = decide(*curve(hill(top, 3.0), seed=seed))
    assert found.chosen is not None, found.why
    assert found.chosen.low <= top <= found.chosen.high
    assert found.chosen.low <= found.chosen.strength <= found.chosen.high
    assert found.chosen.gain.low > 0
    assert {found.chosen.low, found.chosen.high} <= {0.0, *STRENGTHS}


def test_noise_is_refused() -> None:
    """Of curves without any effect one in twenty at most may pass."""
    named = sum(decide(*curve(flat, seed=seed)).chosen is not None for seed in range(60))
    assert named <= 3


def test_noise_is_refused_in_two_forms_too() -> None:
    named = 0
    for seed in range(40):
        base, shift = curve(flat, seed=seed)
        _, product = curve(flat, seed=seed, form="product")
        named += decide(base, [*shift, *product]).chosen is not None
    assert named <= 2


def test_what_is_harmful_is_refused_as_no_gain() -> None:
    found = decide(*curve(lambda s: -s, seed=1))
    assert found.chosen is None
    assert "reaches 0" in found.why


@pytest.mark.parametrize("seed", range(5))
def test_a_curve_that_still_rises_is_refused_and_larger_strengths_are_proposed(seed: int) -> None:
    found = decide(*curve(lambda s: 0.3 * s, seed=seed))
    assert found.chosen is None
    assert "still rises at the largest strength tried, 8" in found.why
    assert "16" in found.why


def test_a_plateau_that_reaches_the_edge_is_refused() -> None:
    """From 2 on all are equally good, so it cannot be said that the reward falls beyond any of them."""
    refused = [decide(*curve(lambda s: min(s, 2.0), seed=seed)) for seed in range(20)]
    assert sum(found.chosen is None for found in refused) >= 18
    assert all("largest strength tried" in found.why for found in refused if found.chosen is None)


def test_of_equal_strengths_the_one_of_less_kl_is_taken() -> None:
    """Answers that are the same, letter for letter: two strengths with one reward for each prompt."""
    base, points = curve(hill(2.0, 3.0))
    at = {point.strength: point for point in points}
    twin = Point("shift", 3.0, at[2.0].reward, list(np.asarray(at[2.0].kl) - 1.0))
    for order in ([*points, twin], [twin, *points]):
        found = decide(base, order)
        assert found.chosen is not None
        assert found.chosen.strength == 3.0


def _two_forms(product: Curve, shift: Curve, *, product_cost: float, shift_cost: float) -> Decision:
    base, points = curve(shift, cost=shift_cost)
    _, others = curve(product, form="product", cost=product_cost)
    return decide(base, [*points, *others])


def test_of_forms_that_cannot_be_told_apart_the_one_of_less_kl_is_taken() -> None:
    for product_cost, shift_cost, wanted in ((1.0, 2.0, "product"), (2.0, 1.0, "shift")):
        found = _two_forms(hill(2.0, 3.0), hill(2.0, 3.0), product_cost=product_cost, shift_cost=shift_cost)
        assert found.chosen is not None
        assert found.chosen.form == wanted
        assert len(found.peaks) == 2


def test_a_form_that_is_clearly_better_is_taken_though_it_costs_more() -> None:
    found = _two_forms(hill(2.0, 2.0), hill(2.0, 4.0), product_cost=0.1, shift_cost=5.0)
    assert found.chosen is not None
    assert found.chosen.form == "shift"


def test_nothing_is_named_where_a_form_that_still_rises_is_clearly_better() -> None:
    found = _two_forms(hill(2.0, 2.0), lambda s: float(s), product_cost=1.0, shift_cost=1.0)
    assert found.chosen is None
    assert "As a shift: the reward still rises" in found.why
    other = _two_forms(hill(2.0, 2.0), lambda s: 0.1 * s, product_cost=1.0, shift_cost=1.0)
    assert other.chosen is not None
    assert other.chosen.form == "product"


def test_gold_decides_and_the_training_reward_says_whether_it_is_over_optimised() -> None:
    found = decide(*curve(lambda s: float(s), gold=hill(2.0, 3.0)))
    assert found.chosen is not None
    assert found.chosen.strength == 2.0
    assert found.chosen.over_optimised
    agreeing = decide(*curve(hill(2.0, 3.0), gold=hill(2.0, 3.0))).chosen
    assert agreeing is not None
    assert not agreeing.over_optimised
    alone = decide(*curve(hill(2.0, 3.0))).chosen
    assert alone is not None
    assert alone.reward_after is None


@pytest.mark.parametrize(("scale", "offset"), [(1000.0, 0.0), (1e-3, 0.0), (1.0, 50.0)])
def test_the_units_of_a_reward_decide_nothing(scale: float, offset: float) -> None:
    for truth in (hill(2.0, 3.0), flat, float):
        base, points = curve(truth)  # type: ignore[arg-type]
        moved = Base([scale * value + offset for value in base.reward])
        others = [
            Point(point.form, point.strength, [scale * value + offset for value in point.reward], point.kl)
            for point in points
        ]
        before, after = decide(base, points), decide(moved, others)
        assert (before.chosen is None) == (after.chosen is None)
        if before.chosen is not None and after.chosen is not None:
            assert (before.chosen.strength, before.chosen.low, before.chosen.high) == (
                after.chosen.strength,
                after.chosen.low,
                after.chosen.high,
            )


def test_more_prompts_do_not_widen_the_interval_of_a_clear_peak() -> None:
    few, many = decide(*curve(hill(2.0, 2.0), num=24)), decide(*curve(hill(2.0, 2.0), num=400))
    assert many.chosen is not None
    assert few.chosen is None or few.chosen.high - few.chosen.low >= many.chosen.high - many.chosen.low
    assert many.chosen.low == many.chosen.high == 2.0


def test_few_prompts_are_refused_by_their_number() -> None:
    found = decide(*curve(hill(2.0, 3.0), num=9))
    assert found.chosen is None
    assert "9 prompts" in found.why


def test_what_cannot_be_compared_is_refused() -> None:
    base, points = curve(flat)
    with pytest.raises(InputError, match="same prompts"):
        decide(Base(base.reward[:-1]), points)
    with pytest.raises(InputError, match="some strengths only"):
        decide(base, [Point("shift", 9.0, points[0].reward, points[0].kl, points[0].reward), *points])
    with pytest.raises(InputError, match="above 0"):
        decide(base, [Point("shift", -1.0, points[0].reward, points[0].kl)])
    with pytest.raises(InputError, match="twice"):
        decide(base, [*points, points[0]])
    with pytest.raises(InputError, match="No strength"):
        decide(base, [])


def test_a_reward_that_is_always_the_same_is_named_with_its_value() -> None:
    base, points = curve(flat, noise=0.0)
    same = [Point(point.form, point.strength, [2.5] * 64, point.kl) for point in points]
    found = decide(Base([2.5] * 64), same)
    assert found.chosen is None
    assert "is 2.5 for every answer" in found.why
    assert "64 prompts" in found.why
    assert "more prompts" not in found.why
    gold = [Point(point.form, point.strength, point.reward, point.kl, [1.0] * 64) for point in points]
    assert "gold reward is 1 for every answer" in decide(Base(base.reward, [1.0] * 64), gold).why


def test_a_reward_that_is_the_same_for_all_answers_to_a_prompt_says_its_values() -> None:
    _, points = curve(flat, noise=0.0)
    values = [float(number % 3) for number in range(64)]
    found = decide(Base(values), [Point(point.form, point.strength, values, point.kl) for point in points])
    assert found.chosen is None
    assert "same with and without the guide" in found.why
    assert "0 to 2 over 64 prompts" in found.why
    assert "more prompts" not in found.why


def test_answers_that_the_guide_leaves_as_they_are_are_not_the_rewards_fault() -> None:
    base, points = curve(flat, noise=0.0)
    still = [Point(point.form, point.strength, base.reward, [0.0] * 64) for point in points]
    why = decide(Base(base.reward), still).why
    assert "KL is 0" in why
    assert "reward" not in why.replace("rewards", "")
