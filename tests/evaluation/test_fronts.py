"""A front beside what noise alone gives: the base drawn as often, methods of as many points, paired by prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation import comparison_fakes as fakes
from tests.evaluation.test_comparison import run
from trimtab.evaluation.comparison.pareto_summary import Front, differences_of, fronts_of, redrawn_cells
from trimtab.evaluation.comparison.recipe import REDRAWN, Recipe
from trimtab.evaluation.comparison.recipe_reader import parse_recipe
from trimtab.evaluation.comparison.records import Key, Row
from trimtab.evaluation.comparison.run import keys_of
from trimtab.evaluation.comparison.summary import cells_of
from trimtab.evaluation.report.results import read_results
from trimtab.methods.method import Strength

pytest.importorskip("moarchiving")
NUM_PROMPTS = 24


def recipe_of(*strengths: Sequence[float]) -> Recipe:
    """Methods m0, m1, ... with so many strengths each, beside the base."""
    methods: list[dict[str, Any]] = [{"method": "base"}]
    methods += [
        {"name": f"m{index}", "method": "aligner", "model": f"model-{index}", "strengths": list(own)}
        for index, own in enumerate(strengths)
    ]
    changes = {"methods": methods, "reference": {"good": -3.0, "brief": -3.0}, "seeds": [3, 4]}
    return parse_recipe({**fakes.pareto_source(), **changes}, Path(), fakes.METHODS, fakes.check)


def rows_of(recipe: Recipe, lifts: dict[str, float]) -> list[Row]:
    """Noise, and a lift of both rewards by method; each prompt has a level of its own, which pairing takes out."""
    rng = np.random.default_rng(0)
    levels = rng.normal(size=(NUM_PROMPTS, 2))
    prompts = {"test": [f"Prompt {index}" for index in range(NUM_PROMPTS)]}
    rows = []
    for key in keys_of(recipe, prompts):
        good, brief = levels[key.prompt_index] + 0.5 * rng.normal(size=2) + lifts.get(key.method, 0.0)
        rows.append(row(key, {"good": float(good), "brief": float(brief)}))
    return rows


def row(key: Key, rewards: dict[str, float]) -> Row:
    return Row(key, f"Prompt {key.prompt_index}", "text", (1,), "eos", rewards, 0.0, "exact", -1.0)


def fronts(recipe: Recipe, rows: Sequence[Row]) -> dict[str, Front]:
    cells = cells_of(recipe, rows, "test")
    return {front.label: front for front in fronts_of(recipe, cells, redrawn_cells(recipe, rows))}


def test_the_base_is_drawn_as_often_as_the_longest_sweep_has_points() -> None:
    recipe = recipe_of([1, 2], [1, 2, 3, 4])
    prompts = {"test": ["a", "b"], "validation": ["c"]}
    redrawn = [key for key in keys_of(recipe, prompts) if key.split == REDRAWN]
    assert {key.method for key in redrawn} == {"base"}
    assert [len(point) for point in recipe.redraws] == [2, 2, 2]
    seeds = [seed for point in (recipe.seeds, *recipe.redraws) for seed in point]
    assert len(set(seeds)) == 8  # no draw counts twice
    assert sorted((key.seed, key.prompt_index) for key in redrawn) == sorted(
        (seed, index) for point in recipe.redraws for seed in point for index in (0, 1)
    )
    alone = parse_recipe(fakes.source(), Path(), fakes.METHODS, fakes.check)
    assert not [key for key in keys_of(alone, prompts) if key.split == REDRAWN]


def test_a_method_that_does_nothing_covers_no_more_than_the_base_redrawn() -> None:
    recipe = recipe_of([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    found = fronts(recipe, rows_of(recipe, {"m1": 0.6}))
    idle, lifted = found["m0"], found["m1"]
    assert idle.over_redrawn is not None
    assert not idle.over_redrawn.clear_of_zero
    assert lifted.over_redrawn is not None
    assert lifted.over_redrawn.clear_of_zero
    assert lifted.redrawn is not None
    assert lifted.over_redrawn.value == pytest.approx(lifted.hypervolume.value - lifted.redrawn.value)
    assert lifted.redrawn == idle.redrawn
    assert (found["base"].redrawn, found["base"].over_redrawn) == (None, None)


def test_the_base_is_redrawn_as_often_as_the_method_has_points() -> None:
    recipe = recipe_of([1, 2], [1, 2, 3, 4, 5])
    found = fronts(recipe, rows_of(recipe, {}))
    few, many = found["m0"].redrawn, found["m1"].redrawn
    assert few is not None
    assert many is not None
    assert few.value < many.value


def test_fronts_are_compared_at_the_same_number_of_points_only() -> None:
    recipe = recipe_of([1, 2, 3], [1, 2, 3], [1, 2])
    rows = rows_of(recipe, {"m1": 0.5})
    (only,) = differences_of(recipe, cells_of(recipe, rows, "test"))
    assert (only.label, only.other, only.num_strengths) == ("m0", "m1", 3)
    assert only.hypervolume.clear_of_zero
    found = fronts(recipe, rows)
    assert only.hypervolume.value == pytest.approx(found["m0"].hypervolume.value - found["m1"].hypervolume.value)


def test_without_the_redrawn_answers_nothing_is_said_of_noise() -> None:
    recipe = recipe_of([1, 2, 3])
    rows = [one for one in rows_of(recipe, {}) if one.key.split != REDRAWN]
    assert fronts(recipe, rows)["m0"].redrawn is None


@pytest.fixture(scope="module")
def pareto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fronts") / "run"
    run(path, parse_recipe(fakes.pareto_source(), Path(), fakes.METHODS, fakes.check))
    return path


def test_a_run_makes_them_and_counts_them(pareto: Path) -> None:
    results = read_results(pareto, fakes.METHODS)
    assert results.num_missing == 0
    lines = [json.loads(line) for line in (pareto / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert results.num_wanted == len(lines)
    redrawn = [line for line in lines if line["split"] == REDRAWN]
    assert len(redrawn) == 2 * 2 * 14  # two points more, two seeds each
    assert {line["strength"] for line in redrawn} == {0.0}
    strengths: set[Strength] = {cell.strength for cell in results.cells if cell.spec.name == "base"}
    assert strengths == {0.0}
    assert "more than 3 points of the base redrawn: a difference of" in results.lead
