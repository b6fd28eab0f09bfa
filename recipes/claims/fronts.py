"""Fronts of kept rows, by the statistics of `trimtab compare`: hypervolumes of as many points, paired by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import DataError
from trimtab.evaluation.comparison.pareto_summary import differences_of, fronts_of, redrawn_cells
from trimtab.evaluation.comparison.recipe import REDRAWN, MethodSpec, PromptSource, Recipe, Reward
from trimtab.evaluation.comparison.records import Row, as_strength
from trimtab.evaluation.comparison.summary import Estimate, cells_of
from trimtab.methods.method import Strength


def volume_difference(
    rows: Sequence[Mapping[str, Any]], of: str, than: str, reference: Mapping[str, float]
) -> tuple[Estimate, int]:
    """The hypervolume of `of` less that of `than` and the number of points. Raises DataError where there is none."""
    recipe, answers = _recipe(rows, reference), [_row(row) for row in rows]
    cells = cells_of(recipe, answers, "test")
    if than == "base":
        for front in fronts_of(recipe, cells, redrawn_cells(recipe, answers)):
            if front.label == of and front.over_redrawn is not None:
                return front.over_redrawn, front.num_strengths
    for found in differences_of(recipe, cells):
        value = found.hypervolume
        if (found.label, found.other) == (of, than):
            return value, found.num_strengths
        if (found.other, found.label) == (of, than):
            low, high = (None if one is None else -one for one in (value.high, value.low))
            return Estimate(-value.value, low, high, value.num_prompts), found.num_strengths
    raise DataError(f"no fronts of as many points of {of} and {than} on shared prompts.")


def _recipe(rows: Sequence[Mapping[str, Any]], reference: Mapping[str, float]) -> Recipe:
    """As much of a recipe as fronts are counted from: the arms of the rows, their seeds, the two objectives."""
    strengths: dict[str, list[Strength]] = {}
    for row in rows:
        found = strengths.setdefault(row["method"], [])
        if (strength := as_strength(row["strength"])) not in found:
            found.append(strength)
    return Recipe(
        "kept rows",
        "demo",
        {"test": PromptSource(builtin="demo")},
        [Reward(name, "sentiment") for name in reference],
        [MethodSpec(name, "base" if name == "base" else "genarm", tuple(found)) for name, found in strengths.items()],
        seeds=tuple(sorted({row["seed"] for row in rows if row["split"] != REDRAWN})),
        objectives=tuple(reference),
        reference=dict(reference),
    )


def _row(row: Mapping[str, Any]) -> Row:
    """A kept row as a comparison has it, less prompt and token ids."""
    return Row.from_json({**row, "prompt": "", "token_ids": []})
