"""The batches of a comparison: answered, put on the disk, scored. What was paid for is never lost to an error.

`unscored.jsonl` holds the answers of the batch that is being scored, without rewards. Where a scorer fails, or the run
is killed there, they stay, and the next `--resume` scores them instead of making them again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch

from trimtab.answers import Answer
from trimtab.core import Prompt
from trimtab.errors import ScoreError
from trimtab.evaluation.comparison.recipe import REDRAWN, MethodSpec, Recipe, Reward, strength_text
from trimtab.evaluation.comparison.records import Cost, Key, Row, read_answers
from trimtab.evaluation.throughput import peak_memory_mb, reset_peak_memory
from trimtab.methods.method import AnswersEach, Policy
from trimtab.storage.files import write_text
from trimtab.storage.json_lines import append
from trimtab.storage.scorers import LARGEST, Scorer

log = logging.getLogger(__name__)

WARM_UP_TOKENS = 2
_SEED_STRIDE = 1_000_003

Build = Callable[[MethodSpec], Policy]


def draw_seed(seed: int, prompt_index: int) -> int:
    """The seed that a prompt's answer draws from: different for every prompt and seed of a run."""
    return seed * _SEED_STRIDE + prompt_index


class Scoring:
    """Gives rows their rewards and appends them to the answers of a run."""

    def __init__(self, recipe: Recipe, scorers: Mapping[str, Scorer], unscored: Path, answers: TextIO) -> None:
        self._rewards = recipe.rewards
        self._scorers = scorers
        self._unscored = unscored
        self._answers = answers

    def left_over(self) -> list[Row]:
        """The rows that a run before this one has made and not scored."""
        return read_answers(self._unscored)

    def keep(self, rows: Sequence[Row]) -> None:
        """Put rows without rewards on the disk, in the place of those before; they are removed by `score`."""
        if rows:
            text = "".join(json.dumps(row.as_json(), ensure_ascii=True, allow_nan=False) + "\n" for row in rows)
            write_text(self._unscored, text)
        else:
            self._unscored.unlink(missing_ok=True)

    def score(self, rows: Sequence[Row]) -> None:
        """Reward rows and append them; the rows must have been kept.

        Raises ScoreError, which names the prompt, once every row that has all of its rewards is appended; the others
        stay in `unscored.jsonl`.
        """
        rewards: dict[str, list[float | None]] = {}
        failure: ScoreError | None = None
        for reward in self._rewards:
            try:
                rewards[reward.name] = list(self._rewards_of(reward, rows))
            except ScoreError as error:
                rewards[reward.name] = error.rewards
                failure = failure or _located(error, [row.key for row in rows])
        earned = [{name: values[index] for name, values in rewards.items()} for index in range(len(rows))]
        whole = [all(value is not None for value in one.values()) for one in earned]
        scored = [
            replace(row, rewards={name: value for name, value in one.items() if value is not None})
            for row, one, is_whole in zip(rows, earned, whole, strict=True)
            if is_whole
        ]
        append(self._answers, [row.as_json() for row in scored])
        self.keep([row for row, is_whole in zip(rows, whole, strict=True) if not is_whole])
        if failure is not None:
            raise failure

    def _rewards_of(self, reward: Reward, rows: Sequence[Row]) -> list[float]:
        """Score times weight. Raises ScoreError, with the other rewards weighted as well."""
        scorer = self._scorers[reward.name]
        try:
            scores: list[float | None] = list(scorer([row.prompt for row in rows], [row.text for row in rows]))
        except ScoreError as error:
            error.rewards = [None if score is None else reward.weight * score for score in error.rewards]
            raise
        values = [reward.weight * score for score in scores if score is not None]
        for index, value in enumerate(values):
            if abs(value) > LARGEST:
                raise ScoreError(
                    scorer.name,
                    f"gave {scores[index]} for {{place}}, which times its weight {reward.weight:g} is larger than "
                    f"{LARGEST:g}. Give a smaller weight.",
                    place=f"text {index}",
                    index=index,
                    rewards=[other if abs(other) <= LARGEST else None for other in values],
                )
        return values


class Maker:
    """Makes the answers of one method."""

    def __init__(
        self, recipe: Recipe, prompts: Mapping[str, Sequence[Prompt]], spec: MethodSpec, device: torch.device
    ) -> None:
        self._recipe = recipe
        self._prompts = {**prompts, REDRAWN: prompts["test"]}
        self._spec = spec
        self._device = device

    def begin(self, build: Build) -> None:
        """Load the method, and run it once so that no batch pays for a first time."""
        self._policy = build(self._spec)
        params = replace(self._recipe.params, max_new_tokens=WARM_UP_TOKENS)
        list(self._policy.answer([self._prompts["test"][0]], self._spec.strengths[0], params, [0]))

    @property
    def mixes(self) -> bool:
        """Whether a batch may hold answers at several strengths."""
        return isinstance(self._policy, AnswersEach)

    def make(
        self, keys: Sequence[Key], on_answer: Callable[[int], None]
    ) -> tuple[list[Row], Cost, BaseException | None]:
        """The rows of a batch without rewards, what they took, and what ended it where not all of them are there.

        `on_answer` is called after each answer with how many of the batch there are. Where `mixes` is false, all of
        the batch is at one strength.
        """
        prompts = [self._prompts[key.split][key.prompt_index] for key in keys]
        seeds = [draw_seed(key.seed, key.prompt_index) for key in keys]
        answers: list[Answer] = []
        failure: BaseException | None = None
        reset_peak_memory(self._device)
        num_before = self._policy.num_tokens_read
        begin = time.perf_counter()
        try:
            for answer in self._answers(keys, prompts, seeds):
                answers.append(answer)
                on_answer(len(answers))
            if len(answers) != len(keys):
                raise RuntimeError(f"{self._spec.name} gave {len(answers)} answers to {len(keys)} prompts.")
        except BaseException as error:
            if isinstance(error, Exception):  # an interrupt is no failure of the method
                at = ", ".join(dict.fromkeys(strength_text(key.strength) for key in keys))
                log.error("%s failed at strength %s, in a batch that begins with %s", self._spec.name, at, keys[0])
            failure = _located(error, keys) if isinstance(error, ScoreError) else error
        cost = Cost(
            self._spec.name,
            keys[0].strength,
            num_answers=len(answers),
            num_tokens=sum(len(answer.token_ids) for answer in answers),
            decoded_tokens=self._policy.num_tokens_read - num_before,
            seconds=time.perf_counter() - begin,
            peak_memory_mb=peak_memory_mb(self._device),
            batch_size=self._recipe.batch_size,
        )
        made = zip(keys, prompts, answers, strict=False)  # as many as there are answers
        return [self._row(key, prompt, answer) for key, prompt, answer in made], cost, failure

    def _answers(self, keys: Sequence[Key], prompts: Sequence[Prompt], seeds: Sequence[int]) -> Iterator[Answer]:
        if isinstance(self._policy, AnswersEach):
            return self._policy.answer_each(prompts, [key.strength for key in keys], self._recipe.params, seeds)
        return self._policy.answer(prompts, keys[0].strength, self._recipe.params, seeds)

    def _row(self, key: Key, prompt: Prompt, answer: Answer) -> Row:
        policy = self._policy
        return Row(
            key,
            prompt,
            answer.text,
            tuple(answer.token_ids),
            answer.finish_reason,
            {},
            policy.kl(answer, key.strength),
            policy.kl_kind,
            answer.base_logprob,
            answer.acted or {},
            answer.num_needed or {},
        )


def _located(error: ScoreError, keys: Sequence[Key]) -> ScoreError:
    """The error with its prompt named as in `answers.jsonl`."""
    first, last = (keys[0], keys[-1]) if error.index is None else (keys[error.index],) * 2
    numbers = str(first.prompt_index) if first == last else f"{first.prompt_index} to {last.prompt_index} together"
    place = f"prompt_index {numbers} of the {first.split} prompts"
    answer = f"{first.method} at strength {strength_text(first.strength)}, seed {first.seed}"
    located = error.at(f"{place} ({answer})")
    located.__cause__ = error.__cause__
    return located
