"""What a run of `trimtab compare` holds, measured: the numbers behind its page, tables and JSON."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trimtab.errors import DataError, MissingExtraError
from trimtab.evaluation.comparison.cost_summary import CostSummary, summarise_cost, was_timed
from trimtab.evaluation.comparison.pareto_summary import (
    Front,
    FrontDifference,
    differences_of,
    fronts_of,
    redrawn_cells,
)
from trimtab.evaluation.comparison.recipe import MethodSpec, Recipe, strength_text
from trimtab.evaluation.comparison.recipe_reader import KnownMethod, parse_recipe
from trimtab.evaluation.comparison.records import Cost, Key, Row, RunRecord, read_answers, read_costs
from trimtab.evaluation.comparison.run import RunFiles, keys_of, read_run
from trimtab.evaluation.comparison.summary import Cell, Chosen, Estimate, Measured, cells_of, choose, headline, measured
from trimtab.evaluation.comparison.text_metrics import coherence
from trimtab.evaluation.report.findings import findings, pareto_findings
from trimtab.methods.method import Strength

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Results:
    """What a run holds, measured."""

    recipe: Recipe
    run: RunRecord
    cells: Sequence[Cell]
    """All strengths, on the test split."""
    measured: Sequence[Measured]
    """The cells, in numbers."""
    chosen: Mapping[str, Chosen]
    headline: str | None
    """The method that the first sentence is about: chosen on validation prompts, or before; None without either."""
    costs: Sequence[Cost]
    fronts: Sequence[Front]
    front_differences: Sequence[FrontDifference]
    num_missing: int
    num_wanted: int

    @property
    def shown(self) -> list[Measured]:
        """What the tables are about: each method at its chosen strength; every strength where none is chosen."""
        if self.recipe.is_pareto or "validation" not in self.recipe.prompts:
            return list(self.measured)
        return [one for one in self.measured if one.label in self.chosen and self._at(one.label) == one.strength]

    @property
    def cost_summaries(self) -> list[CostSummary]:
        """One for each strength that the tables show; with two objectives one a method, over all of its strengths."""
        return [
            summarise_cost(self.recipe, self.costs, spec, strength)
            for spec in self.recipe.methods
            for strength in self._timed(spec)
            if was_timed(self.costs, spec, strength)
        ]

    def cost_of(self, one: Measured) -> CostSummary | None:
        """What one method took at one strength; None where it was not timed."""
        timed = was_timed(self.costs, one.cell.spec, one.strength)
        return summarise_cost(self.recipe, self.costs, one.cell.spec, one.strength) if timed else None

    def _timed(self, spec: MethodSpec) -> Sequence[Strength | None]:
        if self.recipe.is_pareto:
            return (None,)
        return spec.strengths if "validation" not in self.recipe.prompts else (self._at(spec.name),)

    @property
    def lead(self) -> str:
        """The findings."""
        if self.recipe.is_pareto:
            return pareto_findings(self.recipe, self.fronts)
        costs = {cost.label: cost for cost in self.cost_summaries}
        return findings(self.recipe, self.shown, costs, headline=self.headline)

    def _at(self, label: str) -> Strength | None:
        return self.chosen[label].strength if label in self.chosen else None


def read_results(directory: Path, methods: Mapping[str, KnownMethod], *, measure_coherence: bool = True) -> Results:
    """A run, measured. Raises DataError where there is no run, or no answer to a test prompt."""
    run = read_run(directory)
    files = RunFiles(directory)
    recipe = parse_recipe(run["recipe"], directory, methods, lambda method, options, strengths: [])
    rows = read_answers(files.answers)
    cells = cells_of(recipe, rows, "test")
    if not cells:
        raise DataError("no test prompt has an answer yet; run the comparison first.", path=directory)
    wanted = _wanted(recipe, run)
    validation = cells_of(recipe, rows, "validation")
    chosen = choose(recipe, validation)
    return Results(
        recipe,
        run,
        cells,
        measured(recipe, cells, _coherences(cells) if measure_coherence else {}),
        chosen,
        recipe.headline or headline(recipe, validation, chosen),
        read_costs(files.costs),
        fronts_of(recipe, cells, redrawn_cells(recipe, rows)) if recipe.is_pareto else [],
        differences_of(recipe, cells) if recipe.is_pareto else [],
        num_missing=len(wanted - {row.key for row in rows}),
        num_wanted=len(wanted),
    )


def sample_rows(results: Results, num: int) -> list[list[Row]]:
    """What is said to at most `num` test prompts, a list for each: the row of every method and strength of `shown`.

    The prompts are spread evenly over those that all of them answered under the first seed, so that nobody chose them.
    """
    seed = results.recipe.seeds[0]
    answers = [{row.key.prompt_index: row for row in one.cell.rows if row.key.seed == seed} for one in results.shown]
    shared = sorted(set.intersection(*map(set, answers))) if answers else []
    picked = sorted({shared[number * len(shared) // num] for number in range(num)}) if shared else []
    return [[by_prompt[index] for by_prompt in answers] for index in picked]


def summary_of(results: Results) -> dict[str, object]:
    """The results as JSON: findings, and each method as its row of the table."""
    return {
        "findings": results.lead,
        "num_answers": results.num_wanted - results.num_missing,
        "num_missing": results.num_missing,
        "methods": [method_row(results, one) for one in results.shown],
        "costs": [cost_row(cost) for cost in results.cost_summaries],
        "fronts": [asdict(one) for one in results.fronts],
        "front_differences": [asdict(one) for one in results.front_differences],
    }


def method_row(results: Results, one: Measured) -> dict[str, object]:
    """A cell as one row of numbers."""
    row: dict[str, object] = {"method": one.label, "strength": strength_text(one.strength)}
    row["chosen"] = one.label in results.chosen and results.chosen[one.label].strength == one.strength
    row |= {"num_prompts": one.cell.num_prompts, "num_answers": len(one.cell.rows), "kl_kind": one.cell.kl_kind}
    for name, value in one.rewards.items():
        row |= _columns(f"reward_{name}", value) | _columns(f"gain_{name}", one.gains.get(name))
    if results.recipe.joint:
        row |= _columns("joint_rate", one.joint)
    for name, measure in one.measures.items():
        row |= _columns(name, measure)
    return row


def _columns(name: str, value: Estimate | None) -> dict[str, float | None]:
    parts = (None, None, None) if value is None else (value.value, value.low, value.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), parts, strict=True))


def cost_row(cost: CostSummary) -> dict[str, object]:
    """A method's cost as one row of numbers."""
    return {**asdict(cost), "strength": "all" if cost.strength is None else strength_text(cost.strength)}


def front_row(one: Front) -> dict[str, object]:
    """A front as one row of numbers."""
    return {
        "method": one.label,
        "num_strengths": one.num_strengths,
        "num_prompts": one.hypervolume.num_prompts,
        **_columns("hypervolume", one.hypervolume),
        **_columns("base_redrawn", one.redrawn),
        **_columns("over_base_redrawn", one.over_redrawn),
        **_columns("inner_product", one.inner_product),
    }


def difference_row(one: FrontDifference) -> dict[str, object]:
    """Two fronts of as many points as one row of numbers."""
    return {
        "method": one.label,
        "other": one.other,
        "num_strengths": one.num_strengths,
        "num_prompts": one.hypervolume.num_prompts,
        **_columns("difference", one.hypervolume),
    }


def _wanted(recipe: Recipe, run: RunRecord) -> set[Key]:
    prompts = {name: range(split["num"]) for name, split in run["settings"]["prompts"].items()}
    return set(keys_of(recipe, prompts))


def _coherences(cells: Sequence[Cell]) -> dict[Key, float]:
    """The coherence of every answer; empty where it cannot be measured, which the log says."""
    rows = [row for cell in cells for row in cell.rows]
    try:
        values = coherence([row.prompt for row in rows], [row.text for row in rows])
    except (MissingExtraError, ValueError) as error:
        log.warning("coherence is left out: %s", error)
        return {}
    return dict(zip((row.key for row in rows), values, strict=True))
