"""What a comparison found, in a few sentences: what is best, by how much, at what price, and what is not told apart.

Differences are paired by prompt on the test split. Two methods are told apart where the 95 % interval of their
difference leaves out 0; nothing corrects for how many methods are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimtab.evaluation.cost_summary import CostSummary
from trimtab.evaluation.page import signed
from trimtab.evaluation.pareto_summary import Front
from trimtab.evaluation.recipe import Recipe, strength_text
from trimtab.evaluation.summary import Estimate, Measured, paired, reward_of


def findings(recipe: Recipe, shown: Sequence[Measured], costs: Mapping[str, CostSummary]) -> str:
    """Of methods at their chosen strengths."""
    name = recipe.main_reward.name
    base = next((one for one in shown if one.cell.spec == recipe.baseline), None)
    others = [one for one in shown if one.cell.spec != recipe.baseline]
    if base is None or not others:
        return "Nothing can be compared yet: the base or every other method has no answer to a test prompt."
    best = max(others, key=lambda one: one.rewards[name].value)
    gain = best.gains.get(name)
    if gain is None or gain.value <= 0:
        return f"No method has a higher mean {name} reward than the unguided model ({written(base.rewards[name])})."
    sentences = [
        f"{_named(best)} has the highest mean {name} reward on the test "
        f"prompts, {signed(best.rewards[name].value)} against {signed(base.rewards[name].value)} without guidance: a "
        f"gain of {written(gain)}{_price(best, costs)}.",
    ]
    if gain.low is not None and not gain.clear_of_zero:
        sentences.append("The interval of that gain holds 0, so it may be chance.")
    rivals = [one for one in others if one is not best and _not_told_apart(best, one, name)]
    if rivals:
        labels = [one.label for one in shown]
        names = [_named(one) if labels.count(one.label) > 1 else one.label for one in rivals]
        sentences.append(f"On these prompts {_listed(names)} cannot be told apart from it.")
    return " ".join(sentences)


def pareto_findings(recipe: Recipe, fronts: Sequence[Front]) -> str:
    """Of fronts."""
    if not fronts:
        return "Nothing can be compared yet: no method has answered the test prompts at all of its strengths."
    best = max(fronts, key=lambda one: one.hypervolume.value)
    sentence = (
        f"{best.label} covers the most of {_listed(list(recipe.objectives))} together: a hypervolume of "
        f"{written(best.hypervolume, digits=3)} over the reference point ({_point(recipe)})."
    )
    rivals = [one.label for one in fronts if one is not best and _overlap(one.hypervolume, best.hypervolume)]
    if rivals:
        sentence += f" Its interval overlaps that of {_listed(rivals)}."
    return sentence


def written(estimate: Estimate, *, digits: int = 2) -> str:
    """A mean with its interval, in a sentence."""

    def write(value: float) -> str:
        return signed(value) if digits == 2 else f"{value:.{digits}f}".replace("-", "−")

    if estimate.low is None or estimate.high is None:
        return f"{write(estimate.value)} (no interval: {estimate.num_prompts} prompts are too few)"
    return f"{write(estimate.value)} (95 % interval {write(estimate.low)} to {write(estimate.high)})"


def _named(one: Measured) -> str:
    return f"{one.label} at strength {strength_text(one.strength)}"


def _price(best: Measured, costs: Mapping[str, CostSummary]) -> str:
    kl, cost = best.kl, costs.get(best.label)
    bound = "at most " if best.cell.kl_kind == "bound" else ""
    parts = [f"{bound}{kl.value:.1f} nats of KL an answer" if kl is not None else "an unknown KL"]
    if cost is not None and cost.ratio_to_base is not None:
        parts.append(f"{cost.ratio_to_base:.2f} of the base's speed")
    return f", for {' and '.join(parts)}"


def _not_told_apart(best: Measured, other: Measured, name: str) -> bool:
    difference = paired(best.cell, other.cell, reward_of(name))
    return difference is None or not difference.clear_of_zero


def _overlap(one: Estimate, other: Estimate) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return True
    return one.low <= other.high and other.low <= one.high


def _point(recipe: Recipe) -> str:
    return ", ".join(f"{name} {recipe.reference[name]:g}".replace("-", "−") for name in recipe.objectives)


def _listed(names: Sequence[str]) -> str:
    *firsts, last = names
    return f"{', '.join(firsts)} and {last}" if firsts else last
