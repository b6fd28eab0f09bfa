"""What rows say by a rule that was fixed before: each outcome can come out, and no choice is made on test prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from recipes.claims.fronts import volume, volume_difference
from recipes.claims.verdicts import (
    CANNOT_TELL,
    DOES_NOT,
    HOLDS,
    PARTLY,
    Outcome,
    gain_at,
    outcome,
    overall,
    share_interval,
)
from trimtab.errors import DataError, OptionError
from trimtab.statistics import Interval, difference_interval

Row = dict[str, Any]


def answers(
    method: str, strength: Any, mean: float, *, kl: float = 1.0, split: str = "test", num: int = 40
) -> list[Row]:
    """Rewards around a mean, the same noise for every arm of a prompt but for a little of its own."""
    found = []
    for index in range(num):
        noise = random.Random(index).gauss(0, 1) + 0.1 * random.Random(f"{method}{strength}{index}").gauss(0, 1)
        row = {"method": method, "strength": strength, "seed": 0, "split": split, "prompt_index": index}
        found.append({**row, "rewards": {"r": mean + noise, "s": mean - noise}, "kl": kl})
    return found


def told(kind: str, rows: list[Row], **more: Any) -> Outcome:
    test = {"what": "w", "kind": kind, "rows": "x", "reward": "r", **more}
    return outcome({"of": {"method": "a", "strength": 1}, "than": {"method": "b", "strength": 1}, **test}, rows)


@pytest.mark.parametrize(("ahead", "wanted"), [(0.5, HOLDS), (-0.5, DOES_NOT), (0.0, CANNOT_TELL)])
def test_a_difference(ahead: float, wanted: str) -> None:
    assert told("difference", answers("a", 1, ahead) + answers("b", 1, 0)).outcome == wanted


@pytest.mark.parametrize(("ahead", "margin", "wanted"), [(0, 0.2, HOLDS), (0.5, 0.2, DOES_NOT), (0, 0.01, CANNOT_TELL)])
def test_an_equivalence_is_no_lack_of_a_difference(ahead: float, margin: float, wanted: str) -> None:
    assert told("equivalence", answers("a", 1, ahead) + answers("b", 1, 0), margin=margin).outcome == wanted


@pytest.mark.parametrize(
    ("part", "widest", "wanted"), [(0.9, 0.2, HOLDS), (0.1, 0.2, DOES_NOT), (0.9, 0.001, CANNOT_TELL)]
)
def test_a_share_of_a_gain(part: float, widest: float, wanted: str) -> None:
    rows = answers("a", 1, part) + answers("b", 1, 1.0) + answers("base", 0, 0.0)
    found = told("share", rows, above=0.5, widest=widest, base={"method": "base", "strength": 0})
    assert found.outcome == wanted
    assert found.interval.value == pytest.approx(part, abs=0.1)


def test_there_is_no_share_of_nothing() -> None:
    with pytest.raises(DataError, match="not clear of 0"):
        share_interval([1.0, 2.0, 3.0] * 4, [0.0, 1.0, 2.0] * 4, [0.0, 1.0, 2.0] * 4)


def test_an_interval_is_that_of_trimtab_over_prompts_whose_seeds_are_averaged() -> None:
    first, second = answers("a", 1, 0.3), answers("b", 1, 0)
    again = [{**row, "seed": 1, "rewards": {"r": row["rewards"]["r"] + 0.2}} for row in first]
    found = told("difference", first + again + second)
    pairs = [(one["rewards"]["r"] + 0.1, two["rewards"]["r"]) for one, two in zip(first, second, strict=True)]
    wanted = difference_interval(*map(list, zip(*pairs, strict=True)))
    assert found.num == 40
    assert (found.interval.value, found.interval.low) == pytest.approx((wanted.value, wanted.low))


def test_strengths_are_chosen_on_validation_prompts_alone() -> None:
    rows = answers("a", 1, 0) + answers("a", 2, 5) + answers("b", 1, 0)
    rows += answers("a", 1, 1, split="validation", kl=2) + answers("a", 2, 0, split="validation", kl=9)
    rows += answers("b", 1, 0, split="validation", kl=8)
    assert told("difference", rows, of={"method": "a", "strength": "best"}).arms == "a (1) less b (1)"


def test_an_arm_of_so_many_nats_is_a_mixture_of_two_strengths() -> None:
    """Its weights come of the validation prompts; its reward is theirs, prompt by prompt."""
    rows = answers("a", 1, 0, kl=99) + answers("a", 2, 5, kl=0) + answers("b", 1, 0) + answers("base", 0, 1)
    rows += answers("a", 1, 0, split="validation", kl=2) + answers("a", 2, 0, split="validation", kl=10)
    rows += answers("b", 1, 0, split="validation", kl=4)

    def reward(nats: object) -> tuple[float, str]:
        found = told("difference", rows, of={"method": "b", "strength": 1}, than={"method": "a", "nats": nats})
        return -found.interval.value, found.arms

    def mean(method: str, strength: float) -> float:
        one, two = answers(method, strength, {1: 0, 2: 5, 0: 1}[strength]), answers("b", 1, 0)
        pairs = zip(one, two, strict=True)
        return sum(row["rewards"]["r"] - other["rewards"]["r"] for row, other in pairs) / len(one)

    for nats, parts, said in (
        (4, ((0.75, "a", 1), (0.25, "a", 2)), "a (between 1 and 2)"),
        ("same", ((0.75, "a", 1), (0.25, "a", 2)), "a (between 1 and 2)"),
        (0.5, ((0.75, "base", 0), (0.25, "a", 1)), "a (between 0 and 1)"),
        (10, ((1.0, "a", 2),), "a (2)"),
    ):
        value, arms = reward(nats)
        assert value == pytest.approx(sum(share * mean(method, strength) for share, method, strength in parts))
        assert arms == f"b (1) less {said}"
    with pytest.raises(DataError, match=r"a reaches 10\.0 nats on the validation prompts, and 11\.0 are asked for"):
        reward(11)


def test_what_a_test_reads_and_rows_lack_is_named() -> None:
    rows = answers("a", 1, 0) + answers("b", 1, 0)
    for arm, error, said in (
        ({"method": "c", "strength": 1}, OptionError, "Unknown arm 'c'"),
        ({"method": "a", "strength": 3}, DataError, "no rows of a at 3"),
        ({"method": "a", "strength": "best"}, DataError, "validation"),
    ):
        with pytest.raises(error, match=said):
            told("difference", rows, of=arm)
    with pytest.raises(DataError, match="needs 10"):
        told("difference", answers("a", 1, 0, num=9) + answers("b", 1, 0, num=9))


@pytest.mark.parametrize(("right", "wanted"), [(180, HOLDS), (105, CANNOT_TELL)])
def test_a_judge_that_may_be_a_coin_judges_nothing(right: int, wanted: str) -> None:
    rows = answers("a", 1, 0.5) + answers("b", 1, 0)
    judged = [{"judge": "j", "pair": at, "right": float(at < right)} for at in range(200)]
    test = {"what": "w", "kind": "difference", "reward": "r", "judge": {"rows": "y", "name": "j"}}
    arms = {"of": {"method": "a", "strength": 1}, "than": {"method": "b", "strength": 1}}
    found = outcome({**test, **arms}, rows, judged)
    assert found.outcome == wanted
    assert ("coin" in found.why) == (wanted == CANNOT_TELL)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, DOES_NOT], PARTLY),
        ([HOLDS, CANNOT_TELL], PARTLY),
        ([DOES_NOT, CANNOT_TELL], DOES_NOT),
        ([CANNOT_TELL, CANNOT_TELL], CANNOT_TELL),
    ],
)
def test_the_verdict_of_several_tests(found: Sequence[str], wanted: str) -> None:
    assert overall([Outcome("w", Interval(0, -1, 1), 40, one, "a") for one in found]) == wanted


def test_a_front_is_counted_as_a_comparison_counts_it() -> None:
    import numpy as np

    from trimtab.evaluation.comparison.pareto import hypervolume

    draw = np.random.default_rng(0)
    for _ in range(50):
        points, corner = draw.normal(size=(5, 2)), draw.normal(size=2) - 1
        assert volume(points, corner) == pytest.approx(hypervolume(points.tolist(), corner.tolist()))


def test_a_front_beside_that_of_the_base_drawn_as_often() -> None:
    rows = answers("a", [1, 0], 1) + answers("a", [0, 1], 1) + answers("base", 0, 0)
    redrawn = [{**row, "seed": 1, "split": "redrawn"} for row in answers("base", 0, 0)]
    reference = {"r": -3.0, "s": -3.0}
    found, num, points = volume_difference(rows + redrawn, "a", "base", reference)
    assert (num, points) == (40, 2)
    assert found.low > 0
    turned, _, _ = volume_difference(
        rows + redrawn + answers("b", [1, 0], 1) + answers("b", [0, 1], 1), "a", "b", reference
    )
    assert turned.low < 0 < turned.high
    with pytest.raises(DataError, match="2 points and base 1"):
        volume_difference(rows, "a", "base", reference)


@pytest.mark.parametrize(("below", "wanted"), [(3.0, HOLDS), (1.0, DOES_NOT), (2.0, CANNOT_TELL)])
def test_a_cost_is_a_time_over_the_bases(below: float, wanted: str) -> None:
    rows = [{"method": "g", "requests": 1, "of_base": 0.5, "lowest": 0.4, "highest": 0.8, "page": "p"}]
    test = {"what": "w", "kind": "cost", "where": {"method": "g", "requests": 1}, "below": below}
    found = outcome(test, rows)
    assert found.outcome == wanted
    assert (found.interval.value, found.interval.low, found.interval.high) == pytest.approx((2.0, 1.25, 2.5))
    with pytest.raises(DataError, match="0 figures"):
        outcome({**test, "where": {"method": "h"}}, rows)


def test_no_verdict_is_typed(repository: Path) -> None:
    """A recipe says what decides, and has no place for what was decided."""
    for path in (repository / "recipes" / "claims").glob("*/recipe.yaml"):
        text = path.read_text(encoding="utf-8")
        assert not any(f": {word}\n" in text for word in (HOLDS, PARTLY, DOES_NOT, CANNOT_TELL)), path


def test_gains_at_so_many_nats_are_those_of_the_mixture() -> None:
    rows = [
        *(row for split in ("test", "validation") for row in answers("base", 0.0, 0.0, kl=0.0, split=split)),
        *(row for split in ("test", "validation") for row in answers("a", 1.0, 1.0, kl=4.0, split=split)),
        *(row for split in ("test", "validation") for row in answers("a", 2.0, 2.0, kl=8.0, split=split)),
    ]
    for nats, wanted in ((2, 0.5), (4, 1.0), (6, 1.5), (8, 2.0)):
        found = gain_at(rows, "a", nats, "r")
        assert found is not None
        assert found.value == pytest.approx(wanted, abs=0.1)
        assert found.low < found.value < found.high
    assert gain_at(rows, "a", 9, "r") is None, "no two strengths enclose it"


def test_an_arm_of_unknown_kl_is_at_no_number_of_nats() -> None:
    rows = [{**row, "kl": None} for row in answers("a", 1.0, 1.0) + answers("a", 1.0, 1.0, split="validation")]
    both = [row for split in ("test", "validation") for row in answers("base", 0.0, 0.0, kl=0.0, split=split)]
    assert gain_at(rows + both, "a", 2, "r") is None
