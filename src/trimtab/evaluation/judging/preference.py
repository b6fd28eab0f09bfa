"""The preference rate of one method over another, on the same prompts (MARA, IJCAI 2025, arXiv 2505.19743).

A win is better on every objective, a loss worse on every one, all else a tie; the rate is (wins − losses) / N. With one
objective it is that objective's net win rate. What it does not say: by how much, and a method that trades one objective
for another only ties. So the net win rate of each objective stands beside it.

At N = 199 the 95 % half-width of a rate is 10 to 14 points: rates that differ by less say little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.errors import InputError
from trimtab.statistics import Interval, mean_interval


@dataclass(frozen=True, slots=True)
class Preference:
    """How often one method is preferred to another. Rates are from −1 to 1, with 95 % bootstrap intervals over prompts.

    Where every prompt has the same outcome, the bootstrap has nothing to resample, and the interval has no width: read
    `num_prompts` beside it.
    """

    wins: int
    ties: int
    losses: int
    num_prompts: int
    rate: Interval
    """(wins − losses) / num_prompts."""
    net_win_rates: Mapping[str, Interval]
    """Objective -> (prompts where it is better − prompts where it is worse) / num_prompts."""


def preference_rate(
    rewards: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], *, confidence: float = 0.95
) -> Preference:
    """The preference rate of the method that earned `rewards` over the one that earned `other`.

    Both map an objective's name to one reward for each prompt, in the same order, HIGHER IS BETTER: turn the sign of a
    cost first. Equal rewards are neither better nor worse. Raises InputError for objectives or lengths that differ, for
    fewer than two prompts, and for rewards that are not finite: leave out such prompts from all of them, and say so.
    """
    _check(rewards, other)
    signs = {
        name: [_sign(one, two) for one, two in zip(values, other[name], strict=True)]
        for name, values in rewards.items()
    }
    outcomes = [_outcome(each) for each in zip(*signs.values(), strict=True)]
    return Preference(
        wins=outcomes.count(1),
        ties=outcomes.count(0),
        losses=outcomes.count(-1),
        num_prompts=len(outcomes),
        rate=mean_interval(outcomes, confidence=confidence),
        net_win_rates={name: mean_interval(values, confidence=confidence) for name, values in signs.items()},
    )


def _sign(one: float, two: float) -> int:
    return (one > two) - (one < two)


def _outcome(signs: Sequence[int]) -> int:
    """1: better on all; −1: worse on all; else 0."""
    return signs[0] if len(set(signs)) == 1 else 0


def _check(rewards: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> None:
    if not rewards or set(rewards) != set(other):
        raise InputError(
            f"One method has rewards for {_listed(rewards)}, the other for {_listed(other)}. Give the same objectives "
            "for both, at least one."
        )
    lengths = {name: (len(rewards[name]), len(other[name])) for name in rewards}
    if len({length for both in lengths.values() for length in both}) > 1:
        named = ", ".join(f"{name} {num} and {num_other}" for name, (num, num_other) in lengths.items())
        raise InputError(
            f"The numbers of rewards differ: {named}. Prompts are compared one by one: score both methods over the "
            "same ones."
        )
    for values in (rewards, other):
        for name, column in values.items():
            for index, reward in enumerate(column):
                if not math.isfinite(reward):
                    raise InputError(
                        f"The {name} reward of prompt {index} is {reward}. Leave the prompt out of every objective of "
                        "both methods, and say how many were."
                    )


def _listed(rewards: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(sorted(rewards)) or "nothing"
