"""The tables of a comparison's page. Every text from outside is escaped here."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

from trimtab.evaluation.comparison.cost_summary import CostSummary
from trimtab.evaluation.comparison.pareto_summary import Front, FrontDifference
from trimtab.evaluation.comparison.recipe import JUDGED_BY, MEASURED, TRAINED_ON, Recipe
from trimtab.evaluation.comparison.summary import REPETITION_N, Estimate, Measured
from trimtab.evaluation.report.wording import gained, how_many, signed, strength_shown

Write = Callable[[float], str]
ROLE_WORDS: Mapping[str, str] = {MEASURED: "", TRAINED_ON: "trained on", JUDGED_BY: "judge"}
"""What stands below a reward's name."""
UNKNOWN = "<span class=range>unknown</span>"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls where it is too wide. Cells are HTML; the first of a row names it."""
    head = "".join(f"<th scope=col>{heading}</th>" for heading in headings)
    body = "\n".join(
        f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return (
        f"<div class=wide tabindex=0><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def interval_cell(estimate: Estimate | None, write: Write, *, bound: bool = False) -> str:
    """A mean over its interval; said where there is none."""
    if estimate is None:
        return UNKNOWN
    value = f"{'≤ ' if bound else ''}{write(estimate.value)}"
    if estimate.low is None or estimate.high is None:
        return f"{value} <span class=range>no interval</span>"
    low, high = write(estimate.low), write(estimate.high)
    return value if low == high else f"{value} <span class=range>{low} to {high}</span>"


def rewards_table(recipe: Recipe, shown: Sequence[Measured]) -> str:
    """Rewards, gains over the base and KL, one row a method and strength."""
    headings = ["method", "strength"]
    for reward in recipe.rewards:
        said = ROLE_WORDS[recipe.role_of(reward)]
        role = f"<span class=range>{said}</span>" if said else ""
        headings += [f"{html.escape(reward.name)}{role}", "over base"]
    if recipe.joint:
        headings.append(f"better in {how_many(recipe.joint)}<span class=range>share of answers</span>")
    headings += ["KL an answer", "KL a token", "−log π<sub>base</sub>", "prompts"]
    return table(headings, [_rewards_row(recipe, one) for one in shown])


def text_table(shown: Sequence[Measured]) -> str:
    """How the answers read."""
    headings = ["method", "strength", "tokens", "cut by the limit", f"rep-{REPETITION_N}, %", "diversity", "coherence"]
    writes: Mapping[str, Write] = {
        "length": _one_digit,
        "cut": "{:.0%}".format,
        "repetition": _one_digit,
        "diversity": signed,
        "coherence": signed,
    }
    return table(
        headings,
        [
            [*_named(one), *(interval_cell(one.measures[name], write) for name, write in writes.items())]
            for one in shown
        ],
    )


def cost_table(costs: Sequence[CostSummary]) -> str:
    """Speed and memory, one row a method."""
    rows = [
        [
            html.escape(cost.label),
            "all" if cost.strength is None else strength_shown(cost.strength),
            f"{cost.tokens_per_s:.1f}",
            "unknown" if cost.ratio_to_base is None else f"{cost.ratio_to_base:.2f}",
            f"{cost.decoded_per_token:.1f}",
            f"{cost.peak_memory_mb:.0f}",
            "unknown" if cost.memory_over_base_mb is None else f"{cost.memory_over_base_mb:+.0f}".replace("-", "−"),
        ]
        for cost in costs
    ]
    headings = ["method", "strength", "tokens/s", "of the base", "sampled / kept", "peak MiB", "over the base"]
    return table(headings, rows)


def front_table(fronts: Sequence[Front]) -> str:
    """What each method's sweep covers, beside what the base covers when it is drawn as often."""
    rows = [
        [
            html.escape(one.label),
            str(one.num_strengths),
            str(len(one.on_front)),
            interval_cell(one.hypervolume, _three_digits),
            "–" if one.redrawn is None else interval_cell(one.redrawn, _three_digits),
            "–" if one.over_redrawn is None else interval_cell(one.over_redrawn, _gained_digits),
            "none" if one.inner_product is None else interval_cell(one.inner_product, _three_digits),
            str(one.hypervolume.num_prompts),
        ]
        for one in fronts
    ]
    headings = ["method", "points", "on its front", "hypervolume", "base redrawn", "over that"]
    return table([*headings, "mean inner product", "prompts"], rows)


def front_differences_table(differences: Sequence[FrontDifference]) -> str:
    """Hypervolumes of methods of as many points, two by two."""
    rows = [
        [
            f"{html.escape(one.label)} less {html.escape(one.other)}",
            str(one.num_strengths),
            interval_cell(one.hypervolume, _gained_digits),
            str(one.hypervolume.num_prompts),
        ]
        for one in differences
    ]
    return table(["methods of as many points", "points", "difference of hypervolumes", "prompts"], rows)


def _rewards_row(recipe: Recipe, one: Measured) -> list[str]:
    cells = _named(one)
    for reward in recipe.rewards:
        gain = one.gains.get(reward.name)
        cells += [interval_cell(one.rewards[reward.name], signed), interval_cell(gain, gained) if gain else "–"]
    if recipe.joint:
        cells.append(interval_cell(one.joint, signed) if one.joint else "–")
    bound = one.cell.kl_kind == "bound"
    cells += [
        interval_cell(one.kl, _one_digit, bound=bound),
        interval_cell(one.measures["kl_per_token"], _three_digits, bound=bound),
        interval_cell(one.measures["base_nats"], _one_digit),
        str(one.cell.num_prompts),
    ]
    return cells


def _named(one: Measured) -> list[str]:
    return [html.escape(one.label), strength_shown(one.strength)]


def _one_digit(value: float) -> str:
    return signed(value, 1)


def _three_digits(value: float) -> str:
    return signed(value, 3)


def _gained_digits(value: float) -> str:
    return gained(value, 3)
