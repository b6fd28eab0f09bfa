"""What the demo prints, and the files beside its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.cli.results import print_json
from trimtab.mixing.forms import PRODUCT, SHIFT

if TYPE_CHECKING:
    from rich.console import Console

    from trimtab.evaluation.comparison.summary import Measured
    from trimtab.evaluation.report.results import Results

NUM_SAMPLES = 3
"""Prompts whose answers are printed."""


def write_files(results: Results, out: Path) -> Path:
    """The report of the comparison, and its curve and numbers under the demo's own names; returns the page's path."""
    from trimtab.evaluation.report.csv_files import write_csv
    from trimtab.evaluation.report.files import write_report

    report = write_report(out, results)
    (out / f"frontier-{results.recipe.main_reward.file_name}.png").replace(out / "frontier.png")
    write_csv(out / "frontier.csv", [_row(results, one) for one in _guided(results)])
    return report


def print_summary(results: Results, report: Path) -> None:
    """One JSON object on standard output."""
    keys = ("form", "weight", "reward", "reward_low", "reward_high", "kl", "tokens_per_s")
    rows = [_row(results, one) for one in _guided(results)]
    base = results.cost_of(results.measured[0])
    summary = {
        "strengths": [{key: row[key] for key in keys} for row in rows],
        "base_tokens_per_s": base and base.tokens_per_s,
        "report": str(report),
    }
    print_json(summary)


def print_results(results: Results, report: Path) -> None:
    """The table, the samples and where the report is, on standard output."""
    from rich.console import Console
    from rich.table import Table

    from trimtab.evaluation.report.wording import in_brackets

    console = Console()
    table = Table(box=None, pad_edge=False, title=None)
    for heading in ("strength", "reward (95 % interval)", "KL, nats an answer", "tokens/s", "ratio to base"):
        table.add_column(heading, justify="right")
    for one in _guided(results):
        cost = results.cost_of(one)
        table.add_row(
            f"{one.label} {one.strength:g}".removeprefix("strength "),
            in_brackets(one.rewards[results.recipe.main_reward.name], digits=3),
            "unknown" if one.kl is None else f"{one.kl.value:.1f}",
            "unknown" if cost is None else f"{cost.tokens_per_s:.0f}",
            "unknown" if cost is None or cost.ratio_to_base is None else f"{cost.ratio_to_base:.2f}",
        )
    console.print(table)
    _print_samples(console, results)
    print(f"\nReport: {report}")


def _print_samples(console: Console, results: Results) -> None:
    """What is said to a few prompts at the weakest, the middle and the strongest strength, side by side."""
    from rich.table import Table
    from rich.text import Text

    from trimtab.evaluation.report.results import sample_rows
    from trimtab.evaluation.report.wording import prompt_text

    name = results.recipe.main_reward.name
    first = results.recipe.methods[1]
    for rows in sample_rows(results, NUM_SAMPLES):
        steered = [row for row in rows if row.key.method == first.name]
        shown = [steered[index] for index in sorted({0, len(steered) // 2, len(steered) - 1})]
        console.print(f"\n{prompt_text(rows[0].prompt)}", style="bold", markup=False, highlight=False)
        beside = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
        for row in shown:
            beside.add_column(f"{first.name} {row.key.strength:g}, reward {row.rewards[name]:.2f}", ratio=1)
        beside.add_row(*(Text(" ".join(row.text.split())) for row in shown))
        console.print(beside)


def _guided(results: Results) -> list[Measured]:
    return [one for one in results.measured if one.cell.spec != results.recipe.baseline]


def _row(results: Results, one: Measured) -> dict[str, object]:
    """A strength in numbers; what has no interval or was not timed is None."""
    from trimtab.evaluation.report.results import method_row

    numbers, name = method_row(results, one), results.recipe.main_reward.name
    cost = results.cost_of(one)
    bounds = ("", "_low", "_high")
    return {
        "form": one.label if one.label in (SHIFT, PRODUCT) else "",
        "weight": one.strength,
        "num_prompts": numbers["num_prompts"],
        **{f"reward{bound}": numbers[f"reward_{name}{bound}"] for bound in bounds},
        **{f"gain{bound}": numbers[f"gain_{name}{bound}"] for bound in bounds},
        **{f"kl{bound}": numbers[f"kl{bound}"] for bound in bounds},
        "num_tokens": sum(row.num_tokens for row in one.cell.rows),
        "tokens_per_s": cost and cost.tokens_per_s,
        "ratio_to_base": cost and cost.ratio_to_base,
    }
