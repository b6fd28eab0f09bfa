"""From answers to the reward of an episode: several scores with multipliers, less a baseline."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.core import Prompt
from trimtab.errors import ModelError, ScoreError
from trimtab.storage.digests import callable_contents, scorer_contents
from trimtab.storage.scorers import Scorer, load_scorer
from trimtab.training.run.rewards import BASE, AgentReward

log = logging.getLogger(__name__)

PATIENCE = 64
"""So many episodes in a row without a reward end a run."""


@dataclass(frozen=True, slots=True)
class Rating:
    """What an answer is worth."""

    scores: Mapping[str, float]
    """Each reward before its multiplier."""
    total: float
    """Σ multiplier · score."""
    final: float
    """scale · (total − baseline): what the agent learns from."""


class Rater:
    """Rates answers by the batch. It remembers the baseline of each prompt, and how many episodes got no reward."""

    def __init__(
        self, rewards: Sequence[AgentReward], *, baseline: float | str = 0.0, reward_scale: float = 1.0
    ) -> None:
        self._terms = [(reward, _scorer(reward)) for reward in rewards]
        self._baseline = baseline
        self._scale = reward_scale
        self.baselines: dict[int, float | None] = {}
        """Prompt number -> Σ multiplier · score of the base's own answer; None where that is not finite."""
        self.num_dropped = 0
        self._num_dropped_in_a_row = 0

    def needs_base(self, numbers: Sequence[int]) -> list[int]:
        """Positions among prompt numbers of those to answer by the base too: each number that is new, once."""
        if self._baseline != BASE:
            return []
        first: dict[int, int] = {}
        for position, number in enumerate(numbers):
            if number not in self.baselines:
                first.setdefault(number, position)
        return list(first.values())

    def learn_baselines(self, numbers: Sequence[int], prompts: Sequence[Prompt], base_texts: Sequence[str]) -> None:
        """Rate the base's own answers to some prompts."""
        for number, (_, total) in zip(numbers, self._rate(numbers, prompts, base_texts), strict=True):
            self.baselines[number] = total if math.isfinite(total) else None

    def rate(self, numbers: Sequence[int], prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Rating | None]:
        """A rating for each answer; None, counted and logged, where a score or the baseline is not finite.

        Raises ModelError once `PATIENCE` answers in a row had none.
        """
        ratings: list[Rating | None] = []
        for number, (scores, total) in zip(numbers, self._rate(numbers, prompts, texts), strict=True):
            baseline = self.baselines[number] if self._baseline == BASE else float(self._baseline)
            if baseline is None or not math.isfinite(total):
                self._drop(scores, baseline)
                ratings.append(None)
                continue
            self._num_dropped_in_a_row = 0
            ratings.append(Rating(scores, total, self._scale * (total - baseline)))
        return ratings

    def state(self) -> dict[str, object]:
        """What a resumed run needs."""
        return {
            "baselines": {str(number): value for number, value in self.baselines.items()},
            "num_dropped": self.num_dropped,
            "num_dropped_in_a_row": self._num_dropped_in_a_row,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.baselines = {int(number): value for number, value in state["baselines"].items()}
        self.num_dropped = int(state["num_dropped"])
        self._num_dropped_in_a_row = int(state["num_dropped_in_a_row"])

    def _rate(
        self, numbers: Sequence[int], prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> list[tuple[dict[str, float], float]]:
        """Scores and totals; the total is NaN or infinite where a score is. Raises ScoreError, naming the prompt."""
        try:
            columns = [(reward, scorer.raw(prompts, texts) if texts else []) for reward, scorer in self._terms]
        except ScoreError as error:
            if error.index is None:
                raise
            number = numbers[error.index]
            raise error.at(f"an answer to prompt {number}", index=number) from error.__cause__
        rows = [{reward.name: column[row] for reward, column in columns} for row in range(len(texts))]
        return [(row, sum(reward.multiplier * row[reward.name] for reward, _ in columns)) for row in rows]

    def _drop(self, scores: Mapping[str, float], baseline: float | None) -> None:
        self.num_dropped += 1
        self._num_dropped_in_a_row += 1
        bad = next((name for name, score in scores.items() if not math.isfinite(score)), None)
        what = f"reward {bad} is {scores[bad]}" if bad else "the reward of the base's own answer is not finite"
        log.warning("an episode is left out: %s (%d so far)", what, self.num_dropped)
        if self._num_dropped_in_a_row >= PATIENCE:
            raise ModelError(
                f"{PATIENCE} episodes in a row have no finite reward ({what}). Check the reward on a few answers; "
                "--resume continues the run once it is mended."
            )


def _scorer(reward: AgentReward) -> Scorer:
    if isinstance(reward.source, str):
        return load_scorer(reward.source)
    return Scorer(reward.name, "", reward.source)


def source_of(reward: AgentReward) -> str:
    """A name for where a reward comes from."""
    if isinstance(reward.source, str):
        return reward.source
    module = getattr(reward.source, "__module__", type(reward.source).__module__)
    return f"{module}:{getattr(reward.source, '__qualname__', type(reward.source).__qualname__)}"


def rewards_card(rewards: Sequence[AgentReward]) -> list[dict[str, str | float]]:
    """`rewards` of a `guide.json`."""
    return [{"name": reward.name, "source": source_of(reward), "multiplier": reward.multiplier} for reward in rewards]


def reward_contents(rewards: Sequence[AgentReward]) -> dict[str, str]:
    """`contents` of a `guide.json`: the digests of what scores, its code or its weights, by reward and file.

    A run to be continued must share them, so that no guide learns from two versions of a reward.
    """
    contents: dict[str, str] = {}
    for reward in rewards:
        source = reward.source
        digests = scorer_contents(source) if isinstance(source, str) else callable_contents(source)
        contents.update({f"reward {reward.name} ({name})": digest for name, digest in digests.items()})
    return contents
