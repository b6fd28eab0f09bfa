"""The report of a run as files: `report.html`, its figures (PNG) and its numbers (CSV), from the run alone.

Nothing is decoded here: the report of a run can be drawn again at any time, also of one that is not finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trimtab.evaluation.comparison.recipe import JUDGED_BY, MEASURED, TRAINED_ON, Recipe, Reward
from trimtab.evaluation.comparison.summary import Measured
from trimtab.evaluation.report import tables
from trimtab.evaluation.report.csv_files import write_csv
from trimtab.evaluation.report.curves import PALETTE, Series, Spot, described, plot
from trimtab.evaluation.report.figure import as_svg, write
from trimtab.evaluation.report.notes import choices_note, notes_of, warnings_of
from trimtab.evaluation.report.page import Page, Sample, Section, figure_html, note, report_page, samples_html
from trimtab.evaluation.report.results import Results, cost_row, difference_row, front_row, method_row, sample_rows
from trimtab.evaluation.report.wording import in_brackets, signed, strength_shown
from trimtab.storage.files import write_text

NUM_SAMPLES = 3
"""Prompts whose answers are shown."""
MAX_LABELLED = 2
"""Up to so many methods beside the base, the points of a figure carry their strengths; more would hide each other."""


def write_report(directory: Path, results: Results, *, more: Sequence[Section] = ()) -> Path:
    """Write `report.html`, the PNGs and the CSVs into the run's directory; returns the page's path.

    `more` stands behind the table of methods (win rates). Raises MissingExtraError without matplotlib.
    """
    sections = [*_frontiers(directory, results), *_pareto(directory, results)]
    sections += [
        Section("Methods on the test prompts", _methods_body(results)),
        *more,
        Section("How the answers read", tables.text_table(results.shown) + note(_TEXT_NOTE)),
        Section("Speed and memory", _costs(results)),
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
    write_text(path, report_page(page))
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
    series = _series(results, lambda one: _spot(results.recipe, one, reward), bounds=True)
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
            f"{one.label} {strength_shown(one.strength)}: {in_brackets(one.rewards[reward.name])}" for one in hidden
        )
        text += note(f"Not drawn, since their KL is unknown. {said}.")
    return text


def _spot(recipe: Recipe, one: Measured, reward: Reward) -> Spot | None:
    """The point of a method at a strength; None where its KL is unknown."""
    if one.kl is None:
        return None
    labelled = len(recipe.methods) <= MAX_LABELLED + 1 and one.cell.spec != recipe.baseline
    return Spot(one.kl, one.rewards[reward.name], strength_shown(one.strength) if labelled else "")


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


def _series(results: Results, spot: Callable[[Measured], Spot | None], *, bounds: bool) -> list[Series]:
    series: list[Series] = []
    others = [spec for spec in results.recipe.methods if spec != results.recipe.baseline]
    for spec in results.recipe.methods:
        points = [one for one in results.measured if one.cell.spec == spec]
        spots = [place for one in points if (place := spot(one)) is not None]
        if spots:
            index = others.index(spec) if spec in others else -1
            series.append(Series(spec.name, spots, index, bounds and points[0].cell.kl_kind == "bound"))
    return series


def _drawn(path: Path, series: Sequence[Series], x_label: str, y_label: str, *, root: bool, caption: str) -> str:
    """A figure, as a PNG and for the page."""
    if not series:
        return note("Nothing can be drawn: no method's KL is known.")
    draw = plot(series, x_label, y_label, root_x=root)
    write(draw, path)
    svg = as_svg(draw, label=f"{y_label} against {x_label}. {described(series)}.", colours=PALETTE)
    return figure_html(svg, caption)


def _methods_body(results: Results) -> str:
    text = tables.rewards_table(results.recipe, results.shown)
    left_out = [f"{label} ({one.why})" for label, one in results.chosen.items() if one.strength is None]
    text += note(f"{choices_note(results.recipe, results.chosen)} {_TABLE_NOTE}")
    return text + (note(f"Not in the table: {', '.join(left_out)}.") if left_out else "")


def _costs(results: Results) -> str:
    """What methods took; nothing where all strengths of a method shared the reading of prompts."""
    costs = results.cost_summaries
    return tables.cost_table(costs) + note(_COST_NOTE) if costs else note(_NO_COSTS)


def _samples(results: Results) -> str:
    shown = sample_rows(results, NUM_SAMPLES)
    if not shown:
        return note("No prompt has an answer of every method yet.")
    name = results.recipe.main_reward.name
    samples = [Sample([(f"{name} {signed(row.rewards[name])}", row) for row in rows]) for rows in shown]
    picked = [rows[0].key.prompt_index for rows in shown]
    return samples_html(samples, picked, max(cell.num_prompts for cell in results.cells), results.recipe.seeds[0])


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
_NO_COSTS = (
    "Not measured: the strengths and seeds of a method answered a prompt in one batch (--share-prompts), so none has a "
    "time of its own. Without that flag each has; trimtab bench decode times a guide."
)
_COST_NOTE = (
    "tokens/s: tokens of the answers by the wall clock of decoding, in this run; no interval, as it is one run. "
    "Sampled / kept: tokens sampled for each token of an answer, drafts and rollouts included. Memory is the highest "
    "of the process, all loaded models included."
)
