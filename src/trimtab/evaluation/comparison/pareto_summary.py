"""Two objectives of a comparison: each method's front, the volume it covers, how well it serves a preference.

Intervals are BCa bootstrap over prompts, all strengths of a method resampled together; the acceleration is from the
jackknife (Efron 1987). A hypervolume is a maximum over noisy points, so it is biased upwards where strengths are many
and prompts few. So it is compared between fronts of as many points only, paired by prompt, and beside each stands what
noise alone gives: the hypervolume of the base itself, drawn under as many sets of seeds as the method has strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from trimtab.evaluation.comparison.pareto import front, hypervolume, mean_inner_product
from trimtab.evaluation.comparison.recipe import REDRAWN, MethodSpec, Recipe
from trimtab.evaluation.comparison.records import Row
from trimtab.evaluation.comparison.summary import MIN_PROMPTS, Cell, Estimate, reward_of
from trimtab.methods.method import Strength
from trimtab.statistics import acceleration_of, bca_levels

Array = NDArray[np.float64]
NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Front:
    """One method's sweep of its strengths."""

    label: str
    num_strengths: int
    on_front: tuple[Strength, ...]
    """Strengths that no other strength of the method beats in both objectives."""
    hypervolume: Estimate
    redrawn: Estimate | None
    """The hypervolume of as many points of the base, each under seeds of its own; None where they are not drawn yet,
    and for the base."""
    over_redrawn: Estimate | None
    """The method's less that of the base redrawn, paired by prompt."""
    inner_product: Estimate | None
    """Mean of preference · rewards, a strength's numbers scaled to sum to 1; None where strengths are one dial and
    the recipe gives no preferences."""


@dataclass(frozen=True, slots=True)
class FrontDifference:
    """Two methods of as many points."""

    label: str
    other: str
    num_strengths: int
    hypervolume: Estimate
    """The hypervolume of `label` less that of `other`, paired by prompt."""


def redrawn_cells(recipe: Recipe, rows: Sequence[Row]) -> list[Cell]:
    """The base as points of a front: its own row, then a cell for each further set of seeds that has answers."""
    base = recipe.baseline
    mine = [row for row in rows if row.key.method == base.name and row.key.strength == base.strengths[0]]
    points = [tuple(row for row in mine if row.key.split == "test" and row.key.seed in recipe.seeds)]
    points += [
        tuple(row for row in mine if row.key.split == REDRAWN and row.key.seed in seeds) for seeds in recipe.redraws
    ]
    return [Cell(base, base.strengths[0], point) for point in points if point]


def fronts_of(recipe: Recipe, cells: Sequence[Cell], redrawn: Sequence[Cell]) -> list[Front]:
    """The front of each method, on the prompts that all of its strengths answered, beside the base's `redrawn`."""
    fronts = []
    noise: dict[int, Estimate | None] = {}  # number of points -> the hypervolume of as many of the base's
    for spec in recipe.methods:
        at_strengths = [cell for cell in cells if cell.spec == spec]
        table = _table(at_strengths, recipe.objectives) if at_strengths else np.zeros((0, 0, 0))
        if table.shape[1] > 0:
            num = len(at_strengths)
            base = [] if spec == recipe.baseline or len(redrawn) < num else redrawn[:num]
            if base and num not in noise:
                drawn = _table(base, recipe.objectives)
                noise[num] = _volume(drawn, recipe) if drawn.shape[1] else None
            gap = _gap(at_strengths, base, recipe) if base else None
            fronts.append(_front(spec, at_strengths, table, noise[num] if base else None, gap, recipe))
    return fronts


def differences_of(recipe: Recipe, cells: Sequence[Cell]) -> list[FrontDifference]:
    """Every two methods of as many points, on the prompts that both answered at all strengths; the base is left out."""
    sweeps = {spec.name: [cell for cell in cells if cell.spec == spec] for spec in recipe.methods}
    sweeps = {label: points for label, points in sweeps.items() if points and label != recipe.baseline.name}
    differences = []
    for (label, points), (other, other_points) in combinations(sweeps.items(), 2):
        if len(points) == len(other_points) and (gap := _gap(points, other_points, recipe)) is not None:
            differences.append(FrontDifference(label, other, len(points), gap))
    return differences


def _gap(cells: Sequence[Cell], others: Sequence[Cell], recipe: Recipe) -> Estimate | None:
    """The hypervolume of some points less that of as many others, paired by prompt; None where they share no prompt."""
    table, corner = _table([*cells, *others], recipe.objectives), _corner(recipe)
    if table.shape[1] == 0:
        return None
    return _bootstrap(
        table,
        lambda points: (
            hypervolume(points[: len(cells)].tolist(), corner) - hypervolume(points[len(cells) :].tolist(), corner)
        ),
    )


def _corner(recipe: Recipe) -> list[float]:
    return [recipe.reference[name] for name in recipe.objectives]


def _volume(table: Array, recipe: Recipe) -> Estimate:
    """The hypervolume of the points of a table [points, prompts, objectives]."""
    corner = _corner(recipe)
    return _bootstrap(table, lambda points: hypervolume(points.tolist(), corner))


def _front(
    spec: MethodSpec,
    cells: Sequence[Cell],
    table: Array,
    redrawn: Estimate | None,
    over_redrawn: Estimate | None,
    recipe: Recipe,
) -> Front:
    strengths = [cell.strength for cell in cells]
    meant = dict(zip(spec.strengths, spec.preferences or spec.strengths, strict=True))
    preferences = _preferences([meant[strength] for strength in strengths])
    product = None
    if preferences is not None:
        product = _bootstrap(table, lambda points: mean_inner_product(preferences, points.tolist()))
    return Front(
        spec.name,
        len(strengths),
        tuple(strengths[index] for index in front(table.mean(axis=1).tolist())),
        _volume(table, recipe),
        redrawn,
        over_redrawn,
        product,
    )


def _table(cells: Sequence[Cell], objectives: Sequence[str]) -> Array:
    """[strengths, prompts, objectives]."""
    columns = [[cell.by_prompt(reward_of(name)) or {} for name in objectives] for cell in cells]
    shared = sorted(set.intersection(*(set(values) for row in columns for values in row)))
    return np.array([[[values[index] for values in row] for index in shared] for row in columns], dtype=np.float64)


def _preferences(strengths: Sequence[Strength]) -> list[list[float]] | None:
    """Each strength's numbers as shares; None unless all have two, not below 0 and not all 0."""
    found = []
    for strength in strengths:
        if not isinstance(strength, tuple) or len(strength) != 2 or min(strength) < 0 or sum(strength) == 0:
            return None
        found.append([number / sum(strength) for number in strength])
    return found


def _bootstrap(table: Array, statistic: Callable[[Array], float]) -> Estimate:
    """A statistic of [strengths, objectives] means, over resampled prompts."""
    num_prompts = table.shape[1]
    value = statistic(table.mean(axis=1))
    if num_prompts < MIN_PROMPTS:
        return Estimate(value, None, None, num_prompts)
    rng = np.random.default_rng(0)
    draws = np.array(
        [statistic(table[:, rng.integers(num_prompts, size=num_prompts)].mean(axis=1)) for _ in range(NUM_RESAMPLES)]
    )
    if np.ptp(draws) == 0.0:
        return Estimate(value, value, value, num_prompts)
    left_out = np.array([statistic(np.delete(table, index, axis=1).mean(axis=1)) for index in range(num_prompts)])
    low, high = np.quantile(draws, bca_levels(value, draws, acceleration_of(left_out.mean() - left_out)))
    return Estimate(value, float(low), float(high), num_prompts)
