"""The reward of every answer: Σ multiplier · score over the rewards that are given, on file as soon as it is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trimtab.core import Prompt
from trimtab.errors import DataError, ModelError, PromptError, ScoreError
from trimtab.making.sampling import Samples
from trimtab.storage.json_lines import append, open_to_append, read_lines
from trimtab.storage.scorers import Scorer
from trimtab.training.run.rewards import AgentReward

BATCH = 64
"""Answers that are scored at a time, at least: whole prompts."""

Rewards = list[float | None]
"""The rewards of a prompt's answers; None for one without a finite one, and for an empty answer."""


class Rewarder:
    """Scorers with their multipliers."""

    def __init__(self, terms: Sequence[tuple[AgentReward, Scorer]]) -> None:
        self._terms = list(terms)

    @property
    def description(self) -> str:
        """What is rewarded, in words for a card."""
        if len(self._terms) == 1 and self._terms[0][0].multiplier > 0:
            return self._terms[0][1].description
        return " plus ".join(f"{reward.multiplier:g} times {scorer.description}" for reward, scorer in self._terms)

    def rate(self, samples: Sequence[Samples], start: int = 0) -> list[Rewards]:
        """The rewards of all answers to these prompts; `start` is the number of the first.

        Raises ScoreError, which names the prompt, where a scorer fails. An answer that a reward model cannot read has
        no reward.
        """
        places = [(index, text) for index, one in enumerate(samples) for text in one.texts if text]
        prompts, texts = [samples[index].prompt for index, _ in places], [text for _, text in places]
        try:
            totals = self._totals(prompts, texts)
        except PromptError:
            totals = [self._alone(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        except ScoreError as error:
            if error.index is None:
                raise
            number = places[error.index][0] + start
            raise error.at(f"an answer to prompt {number}", index=number) from error.__cause__
        values = iter(totals)
        return [[next(values) if text else None for text in one.texts] for one in samples]

    def _totals(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        totals = [0.0] * len(texts)
        for reward, scorer in self._terms if texts else ():
            scores = scorer.raw(prompts, texts)
            totals = [total + reward.multiplier * score for total, score in zip(totals, scores, strict=True)]
        return [total if math.isfinite(total) else None for total in totals]

    def _alone(self, prompt: Prompt, text: str) -> float | None:
        try:
            return self._totals([prompt], [text])[0]
        except PromptError:
            return None


def rate_into(
    path: Path, rewarder: Rewarder, samples: Sequence[Samples], *, on_prompts: Callable[[int], None] | None = None
) -> list[Rewards]:
    """The rewards of all answers, those on file not asked for again; `on_prompts` is told how many prompts are."""
    found = _read(path, samples)
    with open_to_append(path) as stream:
        for start, part in _parts(samples, len(found)):
            rewards = rewarder.rate(part, start)
            append(stream, [{"rewards": values} for values in rewards])
            found += rewards
            if on_prompts is not None:
                on_prompts(len(found))
    return found


def _parts(samples: Sequence[Samples], start: int) -> Iterator[tuple[int, Sequence[Samples]]]:
    """Prompts from number `start` on, so many at a time that there are `BATCH` answers; each with its first number."""
    while start < len(samples):
        end, num = start, 0
        while end < len(samples) and num < BATCH:
            num += len(samples[end].texts)
            end += 1
        yield start, samples[start:end]
        start = end


def _read(path: Path, samples: Sequence[Samples]) -> list[Rewards]:
    rows, _ = read_lines(path, broken="not a line of rewards")
    found: list[Rewards] = []
    for number, row in enumerate(rows, 1):
        values = row.get("rewards")
        if number > len(samples) or not isinstance(values, list) or len(values) != len(samples[number - 1].texts):
            raise DataError("not the rewards of the answers. Give --overwrite to begin anew.", path=path, line=number)
        found.append([None if value is None else float(value) for value in values])
    return found


def check_differ(samples: Sequence[Samples], rewards: Sequence[Rewards]) -> None:
    """Raise ModelError where there are answers and none has a reward, or the reward prefers none to another: it is the
    same for all answers, or for all answers to each prompt."""
    by_prompt = [
        {text: value for text, value in zip(one.texts, values, strict=True) if value is not None}
        for one, values in zip(samples, rewards, strict=True)
    ]
    known = [value for values in rewards for value in values if value is not None]
    if not known and any(text for one in samples for text in one.texts):
        raise ModelError(
            f"No answer to {len(rewards)} prompts has a finite reward. Check the reward on a few answers; --resume "
            "with a reward that is mended, or another, goes on with the answers that are there."
        )
    several = [set(values.values()) for values in by_prompt if len(values) > 1]
    is_one_value = len(known) > 1 and min(known) == max(known)
    if not is_one_value and (not several or any(len(values) > 1 for values in several)):
        return
    num = f"{len(known)} answers to {sum(map(bool, by_prompt))} prompts"
    given = (
        f"The reward is {known[0]:g} for each of {num}"
        if is_one_value
        else f"The reward is the same for all answers to a prompt, {min(known):g} to {max(known):g} over {num}"
    )
    raise ModelError(
        f"{given}, so it prefers none of them. Give another --reward with --resume, which rates the answers that are "
        "there anew; or, with --overwrite, prompts whose answers it tells apart."
    )
