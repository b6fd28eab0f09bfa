"""The report of a comparison as files: `report.html`, its figures (PNG) and its numbers (CSV), from the run alone.

Nothing is decoded here: the report of a run can be drawn again at any time, also of one that is not finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.evaluation.comparison.recipe import JUDGED_BY, MEASURED, TRAINED_ON, Recipe, Reward, strength_text
from trimtab.evaluation.comparison.records import Row
from trimtab.evaluation.comparison.summary import Estimate, Measured
from trimtab.evaluation.report import tables
from trimtab.evaluation.report.comparison_figure import PALETTE, SIZE, Series, Spot, described, plot
from trimtab.evaluation.report.comparison_page import (
    Page,
    Sample,
    Section,
    comparison_page,
    figure_html,
    note,
    reward_text,
    samples_html,
)
from trimtab.evaluation.report.csv_files import write_csv
from trimtab.evaluation.report.figure import as_svg, write_png
from trimtab.evaluation.report.notes import choices_note, notes_of, warnings_of
from trimtab.evaluation.report.results import Results, cost_row, difference_row, front_row, method_row
from trimtab.storage.files import write_text

NUM_SAMPLES = 3
"""Prompts whose answers are shown."""


def write_comparison_report(directory: Path, results: Results, *, more: Sequence[Section] = ()) -> Path:
    """Write `report.html`, the PNGs and the CSVs into the run's directory; returns the page's path.

    `more` stands behind the table of methods (win rates). Raises MissingExtraError without matplotlib.
    """
    sections = [*_frontiers(directory, results), *_pareto(directory, results)]
    sections += [
        Section("Methods on the test prompts", _methods_body(results)),
        *more,
        Section("How the answers read", tables.text_table(results.shown) + note(_TEXT_NOTE)),
        Section("Speed and memory", tables.cost_table(results.cost_summaries) + note(_COST_NOTE)),
    ]
    if len(results.shown) < len(results.measured):
        every = tables.rewards_table(results.recipe, results.measured)
        sections.append(Section("Every strength on the test prompts", every, folded=True))
    sections.append(Section("What they say", _samples(results)))
    page = Page(
        results.recipe.title,
        results.lead,
        sections,
        notes_of(results.recipe, results.run, results.cells),
        warnings_of(results.recipe, results.num_missing, results.num_wanted, results.cells),
    )
    write_csv(directory / "methods.csv", [method_row(results, one) for one in results.measured])
    write_csv(directory / "costs.csv", [cost_row(cost) for cost in results.cost_summaries])
    path = directory / "report.html"
    write_text(path, comparison_page(page))
    return path


def _frontiers(directory: Path, results: Results) -> list[Section]:
    """A figure for each objective, or for the main reward, and for each judge."""
    recipe = results.recipe
    wanted = recipe.objectives if recipe.is_pareto else (recipe.main_reward.name,)
    rewards = [one for one in recipe.rewards if one.name in wanted]
    rewards += [one for one in recipe.rewards if one.role == JUDGED_BY and one not in rewards]
    return [Section(_frontier_title(recipe, reward), _frontier(directory, results, reward)) for reward in rewards]


def _frontier_title(recipe: Recipe, reward: Reward) -> str:
    said = {MEASURED: "", TRAINED_ON: ", trained on", JUDGED_BY: ", which judges"}[recipe.role_of(reward)]
    return f"Reward against KL: {reward.name}{said}"


def _frontier(directory: Path, results: Results, reward: Reward) -> str:
    series = _series(
        results, lambda one: None if one.kl is None else Spot(one.kl, one.rewards[reward.name]), bounds=True
    )
    caption = _CAPTION if any(one.bounded for one in series) else _CAPTION.partition(" Hollow")[0]
    text = _drawn(
        directory / f"frontier-{reward.file_name}.png",
        series,
        _KL_AXIS,
        f"mean {reward.name} reward",
        root=True,
        caption=caption,
    )
    hidden = [one for one in results.measured if one.kl is None]
    if hidden:
        said = "; ".join(
            f"{one.label} {strength_text(one.strength)}: {_plain(one.rewards[reward.name])}" for one in hidden
        )
        text += note(f"Not drawn, since their KL is unknown. {said}.")
    return text


def _pareto(directory: Path, results: Results) -> list[Section]:
    recipe = results.recipe
    if not recipe.is_pareto:
        return []
    first, second = recipe.objectives
    series = _series(results, lambda one: Spot(one.rewards[first], one.rewards[second]), bounds=False)
    labels = (f"mean {first} reward", f"mean {second} reward")
    figure = _drawn(directory / "pareto.png", series, *labels, root=False, caption=_PARETO_CAPTION)
    write_csv(directory / "fronts.csv", [front_row(one) for one in results.fronts])
    point = ", ".join(f"{name} {recipe.reference[name]:g}" for name in recipe.objectives)
    body = figure + tables.front_table(results.fronts) + note(f"{_FRONT_NOTE} {point}.")
    if results.front_differences:
        write_csv(directory / "front_differences.csv", [difference_row(one) for one in results.front_differences])
        body += tables.front_differences_table(results.front_differences)
    return [Section("Both objectives", body)]


def _series(results: Results, spot: Any, *, bounds: bool) -> list[Series]:
    found: list[Series] = []
    others = [spec for spec in results.recipe.methods if spec != results.recipe.baseline]
    for spec in results.recipe.methods:
        own = [one for one in results.measured if one.cell.spec == spec]
        spots = [place for one in own if (place := spot(one)) is not None]
        if spots:
            index = others.index(spec) if spec in others else -1
            found.append(Series(spec.name, spots, index, bounds and own[0].cell.kl_kind == "bound"))
    return found


def _drawn(path: Path, series: Sequence[Series], x_label: str, y_label: str, *, root: bool, caption: str) -> str:
    """A figure, as a PNG and for the page."""
    if not series:
        return note("Nothing can be drawn: no method's KL is known.")
    draw = plot(series, x_label, y_label, root_x=root)
    write_png(draw, path, size=SIZE)
    svg = as_svg(draw, label=f"{y_label} against {x_label}. {described(series)}.", colours=PALETTE, size=SIZE)
    return figure_html(svg, caption)


def _methods_body(results: Results) -> str:
    text = tables.rewards_table(results.recipe, results.shown)
    left_out = [f"{label} ({one.why})" for label, one in results.chosen.items() if one.strength is None]
    text += note(f"{choices_note(results.recipe, results.chosen)} {_TABLE_NOTE}")
    return text + (note(f"Not in the table: {', '.join(left_out)}.") if left_out else "")


def _samples(results: Results) -> str:
    recipe, shown = results.recipe, results.shown
    seed = recipe.seeds[0]
    rows = {(row.key.prompt_index, index): row for index, one in enumerate(shown) for row in _seeded(one, seed)}
    shared = [i for i in sorted({index for index, _ in rows}) if all((i, at) in rows for at in range(len(shown)))]
    if not shared:
        return note("No prompt has an answer of every method yet.")
    picked = sorted({shared[number * len(shared) // NUM_SAMPLES] for number in range(NUM_SAMPLES)})
    name = recipe.main_reward.name
    samples = [
        Sample([(reward_text(name, row.rewards[name]), row) for at in range(len(shown)) for row in [rows[i, at]]])
        for i in picked
    ]
    return samples_html(samples, picked, max(cell.num_prompts for cell in results.cells), seed)


def _seeded(one: Measured, seed: int) -> list[Row]:
    return [row for row in one.cell.rows if row.key.seed == seed]


def _plain(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{interval}".replace("-", "−")


_KL_AXIS = "KL to the base, nats an answer (spaced by its root)"
_POINTS = "One point a strength, joined in their order; bars are 95 % bootstrap intervals over prompts."
_CAPTION = (
    f"{_POINTS} Every way of steering buys reward with KL, so a better method lies further up and to the left. "
    "Hollow markers on a dotted line are an upper bound of KL: the true point is no further right."
)
_PARETO_CAPTION = f"{_POINTS} Further up and to the right is better."
_FRONT_NOTE = (
    "Hypervolume: the area between a method's front and the reference point. It is a maximum over noisy points and "
    "grows with their number, so it compares methods of as many points only. “Base redrawn”: the hypervolume of as "
    "many points of the unguided base, each under seeds of its own, which is what noise alone gives; “over that” is "
    "paired by prompt. "
    "Mean inner product: a strength's numbers, or its preferences in the recipe, scaled to sum to 1, times its "
    "rewards, averaged over the strengths; none where a strength is one dial. Intervals resample prompts. "
    "Reference point:"
)
_TABLE_NOTE = (
    "Below each mean: its 95 % bootstrap interval over prompts. “Over base” is paired by prompt. KL and −log π are in "
    "nats; ≤ marks an upper bound. −log π is of the answer under the unguided model."
)
_TEXT_NOTE = (
    "rep-4 is the share of repeated 4-grams of tokens, diversity ∏(1 − rep-n/100) for n = 2 to 4, coherence the cosine "
    "of the embeddings of prompt and answer."
)
_COST_NOTE = (
    "tokens/s: tokens of the answers by the wall clock of decoding, in this run; no interval, as it is one run. "
    "Sampled / kept: tokens sampled for each token of an answer, drafts and rollouts included. Memory is the highest "
    "of the process, all loaded models included."
)
