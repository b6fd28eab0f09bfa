"""What rows say of a claim, by the rule that its recipe fixed: holds, partly, does not, cannot be told here.

A claim has one or several tests. Each gives an interval and one of three outcomes: it holds, it does not, or the
interval leaves both open. All hold: the claim holds. Some: partly. None, and one does not: the claim does not. Else it
cannot be told here. Strengths are chosen on the validation prompts and tests made on the test prompts, so that no
choice flatters what it is tested by. An arm at so many nats is a mixture of the two strengths whose KL on the
validation prompts encloses them, with weights that give this KL on average: who draws one of the two at random has
just that reward, and at most that KL, since KL is convex. Intervals are those of `trimtab.statistics`: BCa bootstrap
over prompts, the seeds of a prompt averaged first, arms paired by prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from trimtab.errors import DataError, unknown_name
from trimtab.statistics import (
    Interval,
    acceleration_of,
    bca_levels,
    difference_interval,
    mean_interval,
    paired_means,
    wilson_interval,
)

HOLDS, PARTLY, DOES_NOT, CANNOT_TELL = "holds", "partly", "does not", "cannot be told here"
KINDS = ("difference", "equivalence", "share", "front", "cost")
Rows = Sequence[Mapping[str, Any]]
Strength = Any
MIN_PROMPTS = 10


@dataclass(frozen=True, slots=True)
class Arm:
    """A method at one strength, or a mixture of two."""

    method: str
    parts: tuple[tuple[str, Strength, float], ...]
    """Method, strength, and how much of the mixture it is; the base is part of an arm of few nats."""
    nats: float | None = None
    """The KL that the mixture has on the validation prompts."""

    def __str__(self) -> str:
        strengths = [_short(strength) for _, strength, _ in self.parts]
        where = strengths[0] if len(strengths) == 1 else f"between {strengths[0]} and {strengths[1]}"
        return f"{self.method} ({where})"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test of a claim."""

    what: str
    interval: Interval
    num: int
    """Prompts, or figures where no prompts were drawn."""
    outcome: str
    arms: str
    """Which arms were compared, with the strengths that were chosen."""

    judge: str = ""
    """What is wrong with the judge whose reward this is; a judge that is not clear of a coin judges nothing."""

    @property
    def why(self) -> str:
        """What is left open, in words; nothing where the test tells."""
        if self.outcome != CANNOT_TELL:
            return ""
        if self.judge:
            return f"{self.what}: {self.judge}"
        return f"{self.what}: {self.interval} over {self.num} prompts leaves both open"


def overall(outcomes: Sequence[Outcome]) -> str:
    """The verdict on a claim with these tests."""
    found = {one.outcome for one in outcomes}
    if found == {HOLDS}:
        return HOLDS
    if HOLDS in found:
        return PARTLY
    return DOES_NOT if DOES_NOT in found else CANNOT_TELL


def outcome(test: Mapping[str, Any], rows: Rows, judged: Rows | None = None) -> Outcome:
    """The outcome of one test on the rows of its stage.

    `judged` are rows of the test's judge on pairs that people ordered: one that is not clear of a coin leaves open what
    it would have told. Raises DataError where rows lack what the test reads.
    """
    found = _outcome(test, rows)
    if judged is None:
        return found
    right = agreement(judged, test["judge"]["name"])
    if right.low > 0.5:
        return found
    return replace(found, outcome=CANNOT_TELL, judge=f"its judge orders {right} of people's pairs, as a coin might")


def agreement(judged: Rows, name: str) -> Interval:
    """The share of people's pairs that a judge orders as they did, ties half, with its Wilson interval."""
    found = [row["right"] for row in judged if row["judge"] == name]
    if not found:
        raise unknown_name("judge", name, {row["judge"] for row in judged})
    return wilson_interval(sum(found), len(found))


def _outcome(test: Mapping[str, Any], rows: Rows) -> Outcome:
    kind = test["kind"]
    if kind not in KINDS:
        raise unknown_name("kind of test", kind, KINDS)
    if kind in ("cost", "front"):
        return (_cost if kind == "cost" else _front)(test, rows)
    reward = test["reward"]
    first, second = _two_arms(test, rows)
    values = [_by_prompt(rows, arm, "test", reward) for arm in (first, second)]
    said = f"{first} less {second}"
    if kind == "share":
        base = _arm(test["base"], rows, test.get("chosen_by", reward), None)
        values.append(_by_prompt(rows, base, "test", reward))
        said = f"({first} less {base}) over ({second} less {base})"
    shared = sorted(set.intersection(*(set(one) for one in values)))
    if len(shared) < MIN_PROMPTS:
        raise DataError(f"{said}: the arms share {len(shared)} test prompts; an interval needs {MIN_PROMPTS}.")
    aligned = [[one[index] for index in shared] for one in values]
    if kind == "share":
        interval = share_interval(*aligned)
        told = _share(interval, test["above"], test.get("widest"))
    else:
        interval = difference_interval(aligned[0], aligned[1])
        told = _difference(interval, test) if kind == "difference" else _equivalence(interval, test["margin"])
    return Outcome(test["what"], interval, len(shared), told, said)


def _difference(interval: Interval, test: Mapping[str, Any]) -> str:
    """A difference above `above` (0) holds; one that is surely below does not."""
    above = test.get("above", 0.0)
    return HOLDS if interval.low > above else DOES_NOT if interval.high < above else CANNOT_TELL


def _equivalence(interval: Interval, margin: float) -> str:
    """Two arms are alike where the whole interval lies within the margin, and not where none of it does."""
    if -margin < interval.low and interval.high < margin:
        return HOLDS
    return DOES_NOT if interval.low > margin or interval.high < -margin else CANNOT_TELL


def _share(interval: Interval, above: float, widest: float | None) -> str:
    """An interval of more than `widest` to a side tells nothing, wherever it lies."""
    if widest is not None and max(interval.high - interval.value, interval.value - interval.low) > widest:
        return CANNOT_TELL
    return HOLDS if interval.low > above else DOES_NOT if interval.high < above else CANNOT_TELL


def share_interval(part: Sequence[float], whole: Sequence[float], base: Sequence[float]) -> Interval:
    """(mean part − mean base) / (mean whole − mean base) and its BCa interval, prompts resampled for all three.

    Raises DataError where the whole gains nothing over the base, in the sample or in one draw out of forty: a share of
    nothing is no number.
    """
    import numpy as np

    table = np.array([part, whole, base], dtype=np.float64)

    def share(means: Any) -> Any:
        return (means[..., 0] - means[..., 2]) / (means[..., 1] - means[..., 2])

    draws = paired_means(table)
    if table[1].mean() <= table[2].mean() or ((draws[:, 1] - draws[:, 2]) <= 0).mean() > 0.025:
        raise DataError("what is to be recovered is not clear of 0 itself, so there is no share of it.")
    value = float(share(table.mean(axis=1)))
    left_out = np.array([share(np.delete(table, index, axis=1).mean(axis=1)) for index in range(table.shape[1])])
    shares = share(draws)
    low, high = np.quantile(shares, bca_levels(value, shares, acceleration_of(left_out.mean() - left_out)))
    return Interval(value, float(low), float(high))


def _cost(test: Mapping[str, Any], rows: Rows) -> Outcome:
    """A published speed as the time of a token over the base's: 1 over the ratio, ends swapped. Below `below` holds."""
    where = test["where"]
    found = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
    if len(found) != 1:
        raise DataError(f"{len(found)} figures answer {where}; a test reads one.")
    (row,) = found
    interval = Interval(1 / row["of_base"], 1 / row["highest"], 1 / row["lowest"])
    below = test["below"]
    told = HOLDS if interval.high < below else DOES_NOT if interval.low > below else CANNOT_TELL
    return Outcome(test["what"], interval, 1, told, row["page"])


def _front(test: Mapping[str, Any], rows: Rows) -> Outcome:
    """The hypervolume of a method's points less that of as many of another's, by the comparison's own statistics.

    `than: base` is the base, drawn again under as many sets of seeds.
    """
    from recipes.claims.fronts import volume_difference

    interval, num, points = volume_difference(rows, test["of"], test["than"], test["reference"])
    if num < MIN_PROMPTS:
        raise DataError(f"{test['what']}: {num} shared test prompts; an interval needs {MIN_PROMPTS}.")
    told = _equivalence(interval, test["margin"]) if "margin" in test else _difference(interval, test)
    return Outcome(test["what"], interval, num, told, f"{test['of']} less {test['than']}, {points} points each")


def _short(strength: Strength) -> str:
    return ", ".join(f"{one:g}" for one in strength) if isinstance(strength, list | tuple) else f"{strength:g}"


def _arm(spec: Mapping[str, Any], rows: Rows, reward: str, other: Arm | None) -> Arm:
    """The arm that a test names, or that the validation prompts choose.

    `strength` is a number, a list, or `best` (the highest mean reward); `nats` instead of it is a KL, or `same`: that
    of the other arm.
    """
    method = spec["method"]
    strengths = _strengths(rows, method)
    if "nats" in spec:
        wanted = spec["nats"]
        if wanted == "same":
            assert other is not None
            wanted = _mean(_by_prompt(rows, other, "validation", "kl"))
        return _at(method, strengths, wanted, rows)
    if spec["strength"] == "best":
        means = [_mean(_by_prompt(rows, _single(method, one), "validation", reward)) for one in strengths]
        return _single(method, strengths[means.index(max(means))])
    if _as_list(spec["strength"]) not in [_as_list(one) for one in strengths]:
        raise DataError(f"no rows of {method} at {spec['strength']}; there are {strengths}.")
    return _single(method, spec["strength"])


def _two_arms(test: Mapping[str, Any], rows: Rows) -> tuple[Arm, Arm]:
    """The arms of a test; strengths are chosen by `chosen_by`, another reward than the one that is tested."""
    chosen_by = test.get("chosen_by", test["reward"])
    if test["of"].get("nats") == "same":
        second = _arm(test["than"], rows, chosen_by, None)
        return _arm(test["of"], rows, chosen_by, second), second
    first = _arm(test["of"], rows, chosen_by, None)
    return first, _arm(test["than"], rows, chosen_by, first)


def _single(method: str, strength: Strength) -> Arm:
    return Arm(method, ((method, strength, 1.0),))


def _at(method: str, strengths: Sequence[Strength], nats: float, rows: Rows) -> Arm:
    """The mixture of two neighbouring strengths, the base among them, that has this KL on the validation prompts.

    Raises DataError where no two enclose it.
    """
    points = [("base", 0.0, 0.0)]
    for one in strengths:
        points.append((method, one, _mean(_by_prompt(rows, _single(method, one), "validation", "kl"))))
    for (first, low, below), (_, high, above) in pairwise(points):
        if below <= nats <= above and below < above:
            share = (nats - below) / (above - below)
            parts = ((first, low, 1.0 - share), (method, high, share))
            return Arm(method, tuple(part for part in parts if part[2] > 0.0), nats)
    reached = max(kl for _, _, kl in points)
    raise DataError(f"{method} reaches {reached:.1f} nats on the validation prompts, and {nats:.1f} are asked for.")


def _strengths(rows: Rows, method: str) -> list[Strength]:
    found: list[Strength] = []
    for row in rows:
        if row["method"] == method and row["strength"] not in found:
            found.append(row["strength"])
    if not found:
        raise unknown_name("arm", method, {row["method"] for row in rows})
    return found


def _as_list(strength: Strength) -> list[float]:
    return [float(one) for one in strength] if isinstance(strength, list | tuple) else [float(strength)]


def _by_prompt(rows: Rows, arm: Arm, split: str, measure: str) -> dict[int, float]:
    """Prompt -> mean over its seeds, and over the parts of the arm, of a reward, or of `kl`."""
    tables = [_of_part(rows, method, strength, split, measure) for method, strength, _ in arm.parts]
    shared = set.intersection(*(set(one) for one in tables))
    return {
        index: sum(share * one[index] for one, (_, _, share) in zip(tables, arm.parts, strict=True))
        for index in sorted(shared)
    }


def _of_part(rows: Rows, method: str, strength: Strength, split: str, measure: str) -> dict[int, float]:
    values_of: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row["method"] == method and row["split"] == split and _as_list(row["strength"]) == _as_list(strength):
            value = row["kl"] if measure == "kl" else row["rewards"].get(measure)
            if value is None:
                raise DataError(f"{method} ({_short(strength)}) has rows without {measure}.")
            values_of[row["prompt_index"]].append(value)
    if not values_of:
        raise DataError(f"{method} ({_short(strength)}) has no rows of the {split} prompts.")
    return {index: sum(values) / len(values) for index, values in values_of.items()}


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)


def arms_of(rows: Rows) -> list[tuple[str, Strength]]:
    """Every arm that has test rows, in the order of the rows."""
    found: list[tuple[str, Strength]] = []
    for row in rows:
        arm = (row["method"], row["strength"])
        if row["split"] == "test" and arm not in found:
            found.append(arm)
    return found


def measured(rows: Rows, arm: tuple[str, Strength], measure: str) -> Interval | None:
    """The mean of a reward, or of `kl`, over the test prompts with its interval; None where it is not known."""
    try:
        values = list(_of_part(rows, *arm, "test", measure).values())
    except DataError:
        return None
    return mean_interval(values) if len(values) >= MIN_PROMPTS else None


def gain_at(rows: Rows, method: str, nats: float, reward: str) -> Interval | None:
    """The paired gain over the base of a method at so many nats, on the test prompts; None where it is at none.

    That is where its KL is not known, where no two of its strengths enclose so many nats on the validation prompts, and
    where an interval would have too few prompts.
    """
    arms = {"of": {"method": method, "nats": nats}, "than": {"method": "base", "strength": 0}}
    try:
        return _outcome({"what": "gain", "kind": "difference", "reward": reward, **arms}, rows).interval
    except DataError:
        return None
