"""What `trimtab make` says at its end, and writes into the guide's README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.cli import options
from trimtab.cli.make.stages import Plan
from trimtab.cli.results import print_json

if TYPE_CHECKING:
    from trimtab.cli.calibrate import Calibrated
    from trimtab.evaluation.report.results import Results

COMPARED = "Compared"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage that is done."""

    name: str
    command: str
    seconds: float


def finish(plan: Plan, stages: Sequence[Stage], calibrated: Calibrated | None, *, as_json: bool) -> None:
    """Write what was compared into the README, and say what came of all stages."""
    from trimtab.evaluation.comparison.catalogued import known_methods
    from trimtab.evaluation.report.results import read_results
    from trimtab.making.readme import add_section
    from trimtab.storage.card_values import ACCURACY, SHIFT_ACCURACY, accuracy_in
    from trimtab.storage.cards import read_card
    from trimtab.storage.checking import metrics_of

    results = read_results(plan.places.report, known_methods(), measure_coherence=False)
    lines = compared_lines(results)
    add_section(plan.places.guide, COMPARED, lines)
    report = plan.places.report / "report.html"
    metrics = metrics_of(read_card(plan.places.guide))
    for stage in stages:
        options.say(f"{stage.name}: {stage.seconds:.0f} s")
    found = None if calibrated is None else calibrated.calibration
    why = "" if calibrated is None else calibrated.decision.why
    if as_json:
        accuracies = {
            f"{name}{end}": metrics.get(f"{name}{end}")
            for name in (ACCURACY, SHIFT_ACCURACY)
            for end in ("", "_low", "_high")
        }
        print_json(
            {
                "guide": str(plan.places.guide),
                "stages": [{"name": s.name, "command": s.command, "seconds": round(s.seconds, 1)} for s in stages],
                **accuracies,
                "num_eval_pairs": metrics.get("num_eval_pairs"),
                "calibration": None if found is None else found.as_json(),
                "why": why,
                "report": str(report),
            }
        )
        return
    print("\n".join(lines))
    accuracy, shift = accuracy_in(metrics), accuracy_in(metrics, SHIFT_ACCURACY)
    if accuracy is not None:
        beside = "" if shift is None else f"; less the base's share {shift}"
        print(f"\nAccuracy on {metrics['num_eval_pairs']} held-out pairs: {accuracy}{beside}")
    print(f"\nStrength: {f'not named. {why}' if found is None else found}")
    print(f"Report: {report}")


def compared_lines(results: Results) -> list[str]:
    """The comparison as a table in Markdown, with what it was measured on."""
    from trimtab.evaluation.comparison.recipe import strength_text
    from trimtab.evaluation.report.wording import in_brackets

    recipe = results.recipe
    names = [reward.name for reward in recipe.rewards]
    headings = ["method", "strength", *names, *(f"gain in {name}" for name in names), "KL, nats an answer"]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for one in results.measured:
        is_base = one.cell.spec == recipe.baseline
        cells = [one.label, "" if is_base else strength_text(one.strength)]
        cells += [in_brackets(one.rewards[name], digits=3) for name in names]
        cells += [in_brackets(one.gains[name], digits=3) if name in one.gains else "" for name in names]
        cells.append("unknown" if one.kl is None else in_brackets(one.kl, digits=1))
        lines.append(f"| {' | '.join(cells)} |")
    num = len({row.key.prompt_index for cell in results.cells for row in cell.rows})
    about = (
        f"`{recipe.model}`, {num} test prompts that nothing was trained or chosen on, "
        f"{recipe.params.max_new_tokens} new tokens; means with 95 % intervals over prompts."
    )
    return [about, "", *lines]
