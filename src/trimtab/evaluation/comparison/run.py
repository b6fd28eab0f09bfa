"""Methods × strengths × seeds × prompts on one frozen model, an answer a line, cut and continued at will.

A run is a directory: `run.json` says what it depends on, `answers.jsonl` holds the answers with their rewards and KL,
`costs.jsonl` what the batches took, and `unscored.jsonl`, where a scorer failed, answers that still lack rewards. An
answer is deterministic in (prompt, strength, decoding, seed), so a run that was cut and continued holds the answers of
one that was not, and a row's key says all about it. Continuing makes the missing answers and no others; methods,
strengths and seeds may be added, and nothing else may change.

What it does not know: whether the machine was busy with something else. Costs are those of the run's own wall clock.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from trimtab.core import Prompt
from trimtab.errors import DataError, OutputExistsError
from trimtab.evaluation.comparison.batches import Build, Maker, Scoring, draw_seed
from trimtab.evaluation.comparison.fingerprints import fingerprint
from trimtab.evaluation.comparison.recipe import REDRAWN, SPLITS, MethodSpec, Recipe
from trimtab.evaluation.comparison.records import Key, RunRecord, RunSettings, read_answers
from trimtab.storage.files import write_text
from trimtab.storage.json_lines import append, open_to_append
from trimtab.storage.same_run import check_same
from trimtab.storage.scorers import Scorer

log = logging.getLogger(__name__)

__all__ = ["FORMAT", "Progress", "RunFiles", "draw_seed", "keys_of", "open_run", "read_run", "run_comparison"]

FORMAT = 1


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
    def unscored(self) -> Path:
        return self.directory / "unscored.jsonl"

    @property
    def costs(self) -> Path:
        return self.directory / "costs.jsonl"

    def remove(self) -> None:
        """Remove what an earlier run wrote here, and verdicts on it; what else is in the directory stays."""
        judged = (self.directory / "judgements.jsonl", self.directory / "win_rates.json")
        for path in (self.run, self.answers, self.unscored, self.costs, *judged):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done of a run."""

    num_done: int
    num_answers: int
    message: str = ""


def keys_of(recipe: Recipe, prompts: Mapping[str, Sized]) -> list[Key]:
    """Every answer of a run, in the order in which they are made."""
    return [key for spec in recipe.methods for key in _keys(recipe, spec, prompts)]


def _keys(recipe: Recipe, spec: MethodSpec, prompts: Mapping[str, Sized]) -> Iterator[Key]:
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
    kept: RunSettings = {}
    if files.run.exists():
        if not resume:
            raise OutputExistsError(directory)
        kept = read_run(directory)["settings"]
        check_same(
            kept,
            settings,
            partial=("methods",),
            problem=f"Cannot continue {directory}",
            way_out="Give what it was begun with, or another --out; --overwrite begins anew.",
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
    write_text(files.run, json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    return files


def read_run(directory: Path) -> RunRecord:
    """`run.json` of a run. Raises DataError where there is none, or another program's."""
    path = RunFiles(directory).run
    try:
        run: RunRecord = json.loads(path.read_text(encoding="utf-8"))
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
    share_prompts: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> int:
    """Make the answers that a run does not have yet; returns how many.

    `prompts` are those of each split, `scorers` those of each reward. A method is built only if it has something to
    answer, and let go of before the next. With `share_prompts` all strengths and seeds of a method answer a prompt in
    one batch, so that it is read once; then no costs are kept, for no strength has a time of its own.

    Raises what a policy raises, naming the method in the log, and ScoreError, which names the prompt, where a scorer
    fails; what was answered and scored until then is on the disk.
    """
    wanted = keys_of(recipe, prompts)
    done = {row.key for row in read_answers(files.answers)}
    num_missing = sum(key not in done for key in wanted)
    specs = {spec.name: spec for spec in recipe.methods}
    with open_to_append(files.answers) as answers, open_to_append(files.costs) as costs:
        scoring = Scoring(recipe, scorers, files.unscored, answers)
        left_over = [row for row in scoring.left_over() if row.key not in done]
        if left_over:
            scoring.score(left_over)
        done |= {row.key for row in left_over}
        missing = [key for key in wanted if key not in done]
        num_done = len(wanted) - len(missing)

        def answered(num_of_batch: int) -> None:
            _say(progress, Progress(num_done + num_of_batch, len(wanted)))

        for label, keys in groupby(missing, key=lambda key: key.method):
            maker = Maker(recipe, prompts, specs[label], device)
            _say(progress, Progress(num_done, len(wanted), f"{label}: loading"))
            maker.begin(build)
            for batch in _batches(keys, recipe.batch_size, shared=share_prompts, mixed=share_prompts and maker.mixes):
                rows, cost, failure = maker.make(batch, answered)
                if rows:
                    scoring.keep(rows)
                    if not share_prompts:
                        append(costs, [cost.as_json()])
                    if failure is None or isinstance(failure, Exception):
                        scoring.score(rows)
                if failure is not None:
                    raise failure
                num_done += len(rows)
            del maker
            gc.collect()
    return num_missing


def _batches(keys: Iterator[Key], size: int, *, shared: bool, mixed: bool) -> Iterator[list[Key]]:
    """Answers of one strength, `size` at a time; seeds and splits share a batch.

    `shared`: answers to one prompt stand beside each other. `mixed`: those at all strengths.
    """
    for _, group in groupby(keys, key=lambda key: None if mixed else key.strength):
        items = list(group)
        if shared:
            items.sort(key=lambda key: ((*SPLITS, REDRAWN).index(key.split), key.prompt_index))
        for start in range(0, len(items), size):
            yield items[start : start + size]


def _say(progress: Callable[[Progress], None] | None, state: Progress) -> None:
    if progress is not None:
        progress(state)
