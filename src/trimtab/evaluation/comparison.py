"""Methods × strengths × seeds × prompts on one frozen model, an answer a line, cut and continued at will.

A run is a directory: `run.json` says what it depends on, `answers.jsonl` holds the answers with their rewards and KL,
`costs.jsonl` what the batches took. An answer is deterministic in (prompt, strength, decoding, seed), so a run that was
cut and continued holds the same answers as one that was not, and a row's key says all about it. Continuing makes the
missing answers and no others; methods, strengths and seeds may be added, and nothing else may change.

What it does not know: whether the machine was busy with something else. Costs are those of the run's own wall clock.
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from trimtab.answers import Answer
from trimtab.core import Prompt
from trimtab.errors import DataError, OptionError, OutputExistsError, TrimtabError
from trimtab.evaluation.fingerprints import differences, fingerprint
from trimtab.evaluation.json_lines import append, open_to_append, write_whole
from trimtab.evaluation.recipe import REDRAWN, SPLITS, MethodSpec, Recipe
from trimtab.evaluation.records import Cost, Key, Row, read_answers
from trimtab.evaluation.throughput import peak_memory_mb, reset_peak_memory
from trimtab.policies.policy import Policy, Strength
from trimtab.scorers import Scorer

log = logging.getLogger(__name__)

FORMAT = 1
WARM_UP_TOKENS = 2
_SEED_STRIDE = 1_000_003


Build = Callable[[MethodSpec], Policy]


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run."""

    directory: Path

    @property
    def run(self) -> Path:
        return self.directory / "run.json"

    @property
    def answers(self) -> Path:
        return self.directory / "answers.jsonl"

    @property
    def costs(self) -> Path:
        return self.directory / "costs.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done of a run."""

    num_done: int
    num_answers: int
    message: str = ""


def draw_seed(seed: int, prompt_index: int) -> int:
    """The seed that a prompt's answer draws from: different for every prompt and seed of a run."""
    return seed * _SEED_STRIDE + prompt_index


def keys_of(recipe: Recipe, prompts: Mapping[str, Sequence[Prompt]]) -> list[Key]:
    """Every answer of a run, in the order in which they are made."""
    return [key for spec in recipe.methods for key in _keys(recipe, spec, prompts)]


def _keys(recipe: Recipe, spec: MethodSpec, prompts: Mapping[str, Sequence[Prompt]]) -> Iterator[Key]:
    seeds = {split: list(recipe.seeds) for split in SPLITS if split in prompts}
    if spec == recipe.baseline:
        seeds[REDRAWN] = [seed for point in recipe.redraws for seed in point]
    sizes = {split: len(prompts["test" if split == REDRAWN else split]) for split in seeds}
    for strength in spec.strengths:
        for split, drawn in seeds.items():
            for seed in drawn:
                for index in range(min(sizes[split], spec.max_prompts or sizes[split])):
                    yield Key(spec.name, strength, seed, split, index)


def open_run(
    directory: Path, recipe: Recipe, settings: Mapping[str, Any], about: Mapping[str, Any], *, resume: bool
) -> RunFiles:
    """The directory of a run, new or to be continued, with `run.json` written.

    `about` is what else a reader should know (the machine). Raises OutputExistsError where a run is in the way, and
    OptionError where it was made with other settings, saying what differs.
    """
    files = RunFiles(directory)
    kept: dict[str, Any] = {}
    if files.run.exists():
        if not resume:
            raise OutputExistsError(directory)
        kept = read_run(directory)["settings"]
        changed = differences(kept, settings)
        if changed:
            raise OptionError(
                f"Cannot continue {directory}: {'; '.join(changed)}. Give what it was begun with, or another --out; "
                "--overwrite begins anew."
            )
    elif files.answers.exists():
        raise DataError("there are answers here, but no run.json that says how they were made.", path=directory)
    settings = {**settings, "methods": {**kept.get("methods", {}), **settings["methods"]}}
    run = {
        "format": FORMAT,
        "fingerprint": fingerprint(settings),
        "recipe": recipe.source,
        "settings": settings,
        **about,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(files.run, json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    return files


def read_run(directory: Path) -> dict[str, Any]:
    """`run.json` of a run. Raises DataError where there is none, or another program's."""
    path = RunFiles(directory).run
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no run of `trimtab compare` is here: there is no run.json.", path=directory) from None
    except ValueError as error:
        raise DataError(f"not readable ({error}).", path=path) from None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise DataError(f"not a run of this version, which writes format {FORMAT}.", path=path)
    return run


def run_comparison(
    recipe: Recipe,
    prompts: Mapping[str, Sequence[Prompt]],
    scorers: Mapping[str, Scorer],
    build: Build,
    files: RunFiles,
    *,
    device: torch.device,
    progress: Callable[[Progress], None] | None = None,
) -> int:
    """Make the answers that a run does not have yet; returns how many.

    `prompts` are those of each split, `scorers` those of each reward. A method is built only if it has something to
    answer, and let go of before the next. Raises what a policy raises, naming the method in the log.
    """
    wanted = keys_of(recipe, prompts)
    done = {row.key for row in read_answers(files.answers)}
    missing = [key for key in wanted if key not in done]
    num_done = len(wanted) - len(missing)
    specs = {spec.name: spec for spec in recipe.methods}
    with open_to_append(files.answers) as answers, open_to_append(files.costs) as costs:
        for label, keys in groupby(missing, key=lambda key: key.method):
            maker = _Maker(recipe, prompts, scorers, specs[label], device)
            _say(progress, Progress(num_done, len(wanted), f"{label}: loading"))
            maker.begin(build)
            for strength, batch in _batches(keys, recipe.batch_size):
                rows, cost = maker.make(strength, batch)
                append(answers, [row.as_json() for row in rows])
                append(costs, [cost.as_json()])
                num_done += len(rows)
                _say(progress, Progress(num_done, len(wanted)))
            del maker
            gc.collect()
    return len(missing)


class _Maker:
    """Makes the answers of one method."""

    def __init__(
        self,
        recipe: Recipe,
        prompts: Mapping[str, Sequence[Prompt]],
        scorers: Mapping[str, Scorer],
        spec: MethodSpec,
        device: torch.device,
    ) -> None:
        self._recipe = recipe
        self._prompts = {**prompts, REDRAWN: prompts["test"]}
        self._scorers = scorers
        self._spec = spec
        self._device = device

    def begin(self, build: Build) -> None:
        """Load the method, and run it once so that no batch pays for a first time."""
        self._policy = build(self._spec)
        params = replace(self._recipe.params, max_new_tokens=WARM_UP_TOKENS)
        list(self._policy.answer([self._prompts["test"][0]], self._spec.strengths[0], params, [0]))

    def make(self, strength: Strength, keys: Sequence[Key]) -> tuple[list[Row], Cost]:
        """The rows of a batch and what it took."""
        prompts = [self._prompts[key.split][key.prompt_index] for key in keys]
        seeds = [draw_seed(key.seed, key.prompt_index) for key in keys]
        reset_peak_memory(self._device)
        num_before = self._policy.num_tokens_read
        begin = time.perf_counter()
        try:
            answers = list(self._policy.answer(prompts, strength, self._recipe.params, seeds))
        except TrimtabError:
            log.error("%s failed at strength %s, in a batch that begins with %s", self._spec.name, strength, keys[0])
            raise
        seconds = time.perf_counter() - begin
        if len(answers) != len(keys):
            raise RuntimeError(f"{self._spec.name} gave {len(answers)} answers to {len(keys)} prompts.")
        cost = Cost(
            self._spec.name,
            strength,
            num_answers=len(keys),
            num_tokens=sum(len(answer.token_ids) for answer in answers),
            decoded_tokens=self._policy.num_tokens_read - num_before,
            seconds=seconds,
            peak_memory_mb=peak_memory_mb(self._device),
            batch_size=self._recipe.batch_size,
        )
        rewards = self._rewards(prompts, [answer.text for answer in answers])
        rows = [
            self._row(key, prompt, answer, {name: values[index] for name, values in rewards.items()})
            for index, (key, prompt, answer) in enumerate(zip(keys, prompts, answers, strict=True))
        ]
        return rows, cost

    def _rewards(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, list[float]]:
        return {
            reward.name: [reward.weight * score for score in self._scorers[reward.name](prompts, texts)]
            for reward in self._recipe.rewards
        }

    def _row(self, key: Key, prompt: Prompt, answer: Answer, rewards: Mapping[str, float]) -> Row:
        policy = self._policy
        return Row(
            key,
            prompt,
            answer.text,
            tuple(answer.token_ids),
            answer.finish_reason,
            rewards,
            policy.kl(answer, key.strength),
            policy.kl_kind,
            answer.base_logprob,
        )


def _batches(keys: Iterator[Key], size: int) -> Iterator[tuple[Strength, list[Key]]]:
    """Answers of one strength, `size` at a time; seeds and splits share a batch."""
    for strength, group in groupby(keys, key=lambda key: key.strength):
        items = list(group)
        for start in range(0, len(items), size):
            yield strength, items[start : start + size]


def _say(progress: Callable[[Progress], None] | None, state: Progress) -> None:
    if progress is not None:
        progress(state)
