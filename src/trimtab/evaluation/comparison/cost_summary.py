"""What each method of a comparison took: tokens a second, tokens sampled for each one kept, peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.evaluation.comparison.recipe import MethodSpec, Recipe
from trimtab.evaluation.comparison.records import Cost
from trimtab.methods.method import Strength


@dataclass(frozen=True, slots=True)
class CostSummary:
    """One method, at one strength or over all of them, beside the base in the same run."""

    label: str
    strength: Strength | None
    """None: over all strengths."""
    num_answers: int
    tokens_per_s: float
    """Tokens of answers by the wall clock of decoding, prompts included."""
    ratio_to_base: float | None
    decoded_per_token: float
    """Tokens sampled for each token of an answer: drafts, rollouts and rewritten answers included."""
    peak_memory_mb: float
    memory_over_base_mb: float | None


def summarise_cost(recipe: Recipe, costs: Sequence[Cost], spec: MethodSpec, strength: Strength | None) -> CostSummary:
    """Raises ValueError where nothing was timed."""
    timed = _of(costs, spec, strength)
    base = _of(costs, recipe.baseline, None)
    speed, memory = _speed(timed), max(cost.peak_memory_mb for cost in timed)
    return CostSummary(
        spec.name,
        strength,
        sum(cost.num_answers for cost in timed),
        speed,
        ratio_to_base=speed / _speed(base) if base else None,
        decoded_per_token=sum(cost.decoded_tokens for cost in timed) / max(1, sum(cost.num_tokens for cost in timed)),
        peak_memory_mb=memory,
        memory_over_base_mb=memory - max(cost.peak_memory_mb for cost in base) if base else None,
    )


def was_timed(costs: Sequence[Cost], spec: MethodSpec, strength: Strength | None) -> bool:
    """Whether there is anything to summarise."""
    return bool(_of(costs, spec, strength))


def _of(costs: Sequence[Cost], spec: MethodSpec, strength: Strength | None) -> list[Cost]:
    return [cost for cost in costs if cost.method == spec.name and strength in (None, cost.strength)]


def _speed(costs: Sequence[Cost]) -> float:
    return sum(cost.num_tokens for cost in costs) / max(1e-9, sum(cost.seconds for cost in costs))
