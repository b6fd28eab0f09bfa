"""What a comparison found, in a few sentences: what is gained, at what price, and what is not told apart.

Nothing is picked out on the prompts on which its gain is then reported: the largest of several noisy gains is too
large (the winner's curse). The method that the sentences are about is the best on the validation prompts, or one that
the recipe names as chosen elsewhere (`headline`); without either, all are named, or counted. Differences are paired by
prompt on the test split. Two methods are told apart where the 95 % interval of their difference leaves out 0; nothing
corrects for how many methods are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimtab.evaluation.comparison.cost_summary import CostSummary
from trimtab.evaluation.comparison.pareto_summary import Front
from trimtab.evaluation.comparison.recipe import Recipe
from trimtab.evaluation.comparison.summary import Measured, paired, reward_of
from trimtab.evaluation.report.wording import in_sentence, listed, signed, strength_shown

MAX_NAMED = 6
"""So many strengths a sentence names; more are counted."""


def findings(
    recipe: Recipe, shown: Sequence[Measured], costs: Mapping[str, CostSummary], *, headline: str | None = None
) -> str:
    """The first sentences of a report: about the method `headline`, or, where none was chosen, about all alike."""
    base = next((one for one in shown if one.cell.spec == recipe.baseline), None)
    others = [one for one in shown if one.cell.spec != recipe.baseline and recipe.main_reward.name in one.gains]
    if base is None or not others:
        return "Nothing can be compared yet: the base or every other method has no answer to a test prompt."
    best = next((one for one in others if one.label == headline), None)
    return _of_all(recipe, base, others) if best is None else _of_one(recipe, base, best, others, costs)


def _of_one(
    recipe: Recipe, base: Measured, best: Measured, others: Sequence[Measured], costs: Mapping[str, CostSummary]
) -> str:
    name = recipe.main_reward.name
    gain = best.gains[name]
    chosen = f"On the validation prompts {_named(best)} gained the most {name} reward."
    if recipe.headline is not None:
        chosen = f"{_named(best)} was chosen on other prompts than these."
    sentences = [
        f"{chosen} On the test prompts, which had no say in that, it has {signed(best.rewards[name].value)} against "
        f"{signed(base.rewards[name].value)} without guidance: {'a gain' if gain.value > 0 else 'a difference'} of "
        f"{in_sentence(gain)}{_price(best, costs)}."
    ]
    if gain.low is not None and not gain.clear_of_zero:
        sentences.append("That interval holds 0, so it may be chance.")
    differences = [(one, paired(one.cell, best.cell, reward_of(name))) for one in others if one is not best]
    labels = [one.label for one in others]
    alike = [
        one.label if labels.count(one.label) == 1 else _named(one)
        for one, difference in differences
        if difference is None or not difference.clear_of_zero
    ]
    if alike:
        sentences.append(f"On these prompts {listed(alike)} cannot be told apart from it.")
    sentences += [
        f"{_named(one)} is ahead of it there, by {in_sentence(difference)}."
        for one, difference in differences
        if difference is not None and difference.clear_of_zero and difference.value > 0
    ]
    return " ".join(sentences)


def _of_all(recipe: Recipe, base: Measured, others: Sequence[Measured]) -> str:
    name = recipe.main_reward.name
    gains = [(one, one.gains[name]) for one in others]
    begin = f"Without guidance the mean {name} reward on the test prompts is {in_sentence(base.rewards[name])}. "
    end = " None is picked out, since nothing was chosen on other prompts than these (the recipe's `validation`)."
    if len(gains) <= MAX_NAMED:
        each = "; ".join(f"{_named(one)} gains {in_sentence(gain)}{_nats(one)}" for one, gain in gains)
        return f"{begin}Paired with it, {each}.{end}"
    above = sum(gain.clear_of_zero and gain.value > 0 for _, gain in gains)
    below = sum(gain.clear_of_zero and gain.value < 0 for _, gain in gains)
    return (
        f"{begin}Of {len(gains)} methods and strengths paired with it, {above} gain clear of 0 (95 % intervals), "
        f"{below} lose, and {len(gains) - above - below} are not told apart from it; by chance alone about one "
        f"interval in 40 lies above 0. The table gives each.{end}"
    )


def pareto_findings(recipe: Recipe, fronts: Sequence[Front]) -> str:
    """The first sentence of a report with two objectives: the hypervolume of every front."""
    if not fronts:
        return "Nothing can be compared yet: no method has answered the test prompts at all of its strengths."
    volumes = "; ".join(f"{one.label} {in_sentence(one.hypervolume, digits=3)}{_beside_noise(one)}" for one in fronts)
    return (
        f"What each method covers of {listed(list(recipe.objectives))} together, as a hypervolume over the reference "
        f"point ({_point(recipe)}), all of its strengths taken: {volumes}. None is picked out, since nothing was "
        "chosen on other prompts than these. A hypervolume grows with the number of points by noise alone, so it "
        "compares methods of as many points, and the base redrawn under as many seeds."
    )


def _beside_noise(one: Front) -> str:
    """Whether a front is more than the base drawn as often would give."""
    if one.over_redrawn is None:
        return ""
    gap = one.over_redrawn
    more = "more" if gap.value > 0 else "less"
    relation = f"{more} than" if gap.clear_of_zero else "not told apart from"
    return f", {relation} {one.num_strengths} points of the base redrawn: a difference of {in_sentence(gap, digits=3)}"


def _named(one: Measured) -> str:
    return f"{one.label} at strength {strength_shown(one.strength)}"


def _nats(one: Measured) -> str:
    """What a method pays in KL, where it is known."""
    bound = "at most " if one.cell.kl_kind == "bound" else ""
    return "" if one.kl is None else f" for {bound}{signed(one.kl.value, 1)} nats of KL an answer"


def _price(best: Measured, costs: Mapping[str, CostSummary]) -> str:
    kl, cost = best.kl, costs.get(best.label)
    bound = "at most " if best.cell.kl_kind == "bound" else ""
    parts = [f"{bound}{kl.value:.1f} nats of KL an answer" if kl is not None else "an unknown KL"]
    if cost is not None and cost.ratio_to_base is not None:
        parts.append(f"{cost.ratio_to_base:.2f} of the base's speed")
    return f", for {' and '.join(parts)}"


def _point(recipe: Recipe) -> str:
    return ", ".join(f"{name} {recipe.reference[name]:g}".replace("-", "−") for name in recipe.objectives)
