"""Fronts of kept rows: the hypervolume of one method's points less that of as many of another's, paired by prompt.

The base stands for noise: drawn again under as many sets of seeds (rows of the split `redrawn`), it has as many points.
Counted as `trimtab compare` counts it; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.errors import DataError
from trimtab.statistics import Interval, acceleration_of, bca_levels, paired_means

Rows = Sequence[Mapping[str, Any]]
BASE = "base"


def volume_difference(rows: Rows, of: str, than: str, reference: Mapping[str, float]) -> tuple[Interval, int, int]:
    """The difference with its BCa interval, the number of prompts and of points.

    Raises DataError where the two have not as many points, or share no two prompts.
    """
    first = _points(rows, of, 0)
    second = _points(rows, than, len(first))
    if not first or len(first) != len(second):
        raise DataError(f"{of} has {len(first)} points and {than} {len(second)}; fronts are compared at as many.")
    corner = np.array([*reference.values()], dtype=np.float64)
    tables = [_by_prompt(point, name) for point in (*first, *second) for name in reference]
    shared = sorted(set.intersection(*(set(one) for one in tables)))
    if len(shared) < 2:
        raise DataError(f"{of} and {than} share {len(shared)} test prompts.")
    table = np.array([[one[index] for index in shared] for one in tables])

    def statistic(means: Any) -> float:
        points = means.reshape(-1, len(corner))
        return volume(points[: len(first)], corner) - volume(points[len(first) :], corner)

    value = statistic(table.mean(axis=1))
    draws = np.array([statistic(means) for means in paired_means(table, num_resamples=2000)])
    left_out = np.array([statistic(np.delete(table, index, axis=1).mean(axis=1)) for index in range(len(shared))])
    if np.ptp(draws) == 0.0:
        return Interval(value, value, value), len(shared), len(first)
    low, high = np.quantile(draws, bca_levels(value, draws, acceleration_of(left_out.mean() - left_out)))
    return Interval(value, float(low), float(high)), len(shared), len(first)


def volume(points: Any, corner: Any) -> float:
    """The area between two-dimensional points [N, 2] and a corner below them: what at least one of them exceeds."""
    area, height = 0.0, float(corner[1])
    for first, second in sorted(map(tuple, points.tolist()), reverse=True):
        if first > corner[0] and second > height:
            area += (first - float(corner[0])) * (second - height)
            height = second
    return area


def _points(rows: Rows, method: str, num: int) -> list[Rows]:
    """The test rows of each strength of a method; of the base, of each set of seeds, at most `num`."""
    mine = [row for row in rows if row["method"] == method]
    test = [row for row in mine if row["split"] == "test"]
    if method != BASE:
        strengths: list[Any] = []
        for row in test:
            if row["strength"] not in strengths:
                strengths.append(row["strength"])
        return [[row for row in test if row["strength"] == one] for one in strengths]
    redrawn = [row for row in mine if row["split"] == "redrawn"]
    seeds, each = sorted({row["seed"] for row in redrawn}), len({row["seed"] for row in test})
    sets = [{*seeds[at : at + each]} for at in range(0, len(seeds), each)] if each else []
    return [test, *([row for row in redrawn if row["seed"] in one] for one in sets)][:num]


def _by_prompt(rows: Rows, reward: str) -> dict[int, float]:
    values_of: dict[int, list[float]] = {}
    for row in rows:
        values_of.setdefault(row["prompt_index"], []).append(row["rewards"][reward])
    return {index: sum(values) / len(values) for index, values in values_of.items()}
