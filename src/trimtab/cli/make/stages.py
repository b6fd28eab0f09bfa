"""The stages of `trimtab make`, each as the command that does it: what is printed is what is parsed and run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.cli import options
from trimtab.errors import OptionError

if TYPE_CHECKING:
    from trimtab.making.splits import Splits
    from trimtab.training.run.rewards import AgentReward

PAIRS, TRAIN, CALIBRATE, REPORT = "pairs", "train", "calibrate", "report"
STAGES = (PAIRS, TRAIN, CALIBRATE, REPORT)
METHODS = ("arm", "head", "dpo", "agent")
"""What `--method` may be: what `trimtab train` makes out of pairs, or out of prompts and a reward, and is a guide."""
_TRAINED_BY = {"head": "arm"}
"""A method -> the command of `trimtab train` that makes it, where that is called otherwise."""

_FEW_PAIRS = (
    *("--batch-size", "8", "--gradient-accumulation", "1", "--max-length", "256"),
    *("--save-steps", "20", "--save-dtype", "bfloat16"),
)
TRAINING: Mapping[str, tuple[str, ...]] = {
    "arm": ("--learning-rate", "4e-4", *_FEW_PAIRS),
    "head": ("--head-only", "256", "--learning-rate", "3e-3", *_FEW_PAIRS),
    "dpo": ("--learning-rate", "1e-4", *_FEW_PAIRS),
    "agent": ("--baseline", "base"),
}
"""What a training is told for a few hundred short pairs, where --train-flags does not say otherwise."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything goes, by the directory of the guide."""

    guide: Path

    @property
    def work(self) -> Path:
        return self.guide.with_name(f"{self.guide.name}.work")

    @property
    def unfinished(self) -> Path:
        """Where a training is while it runs."""
        return self.guide.with_name(f"{self.guide.name}.partial")

    @property
    def pairs(self) -> Path:
        return self.work / "pairs.jsonl"

    @property
    def held_out(self) -> Path:
        return self.work / "pairs.held_out.jsonl"

    @property
    def calibration(self) -> Path:
        return self.work / "calibration"

    @property
    def recipe(self) -> Path:
        return self.work / "report.yaml"

    @property
    def report(self) -> Path:
        return self.work / "report"

    @property
    def settings(self) -> Path:
        return self.work / "make.json"

    def prompts(self, part: str) -> Path:
        return self.work / f"{part}.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the flags ask for, read once: every stage's command follows from it."""

    places: Places
    model: str
    rewards: tuple[str, ...]
    """As they were written: [NAME=]SOURCE[:MULTIPLIER]."""
    towards: str | None
    away: str | None
    judge: tuple[str, ...]
    """--judge and its flags; empty without one."""
    data: tuple[str, ...]
    golds: tuple[str, ...]
    measured: tuple[str, ...]
    """The rewards by which the guide is measured where no --reward is given: a judge's scorer."""
    method: str
    template: str
    template_options: tuple[tuple[str, object], ...]
    max_new_tokens: int
    batch_size: int
    seed: int
    strengths: tuple[float, ...]
    common: tuple[str, ...]
    """Flags of every stage that loads a model: --trust-remote-code, --threads."""
    pairs_flags: tuple[str, ...]
    train_flags: tuple[str, ...]
    calibrate_flags: tuple[str, ...]
    existing: tuple[str, ...]
    """--resume, --overwrite, or nothing."""

    @property
    def stages(self) -> list[str]:
        """The stages that there are, in their order; no pairs are made where they are given, or an agent is trained."""
        return [stage for stage in STAGES if stage != PAIRS or self.makes_pairs]

    @property
    def makes_pairs(self) -> bool:
        return not self.data and self.method != "agent"

    def command(self, stage: str) -> list[str]:
        """A stage's command, without the program's name."""
        return {PAIRS: self._pairs, TRAIN: self._train, CALIBRATE: self._calibrate, REPORT: self._report}[stage]()

    def _pairs(self) -> list[str]:
        return [
            *("pairs", "--model", self.model, "--prompts", str(self.places.prompts("train"))),
            *_repeated("--reward", self.rewards),
            *self._sentences,
            *self.judge,
            *("--max-new-tokens", str(self.max_new_tokens), "--batch-size", str(self.batch_size)),
            *("--seed", str(self.seed), "--out", str(self.places.pairs)),
            *self._templates,
            *self.common,
            *self.pairs_flags,
            *self.existing,
        ]

    def _train(self) -> list[str]:
        places = self.places
        if self.method == "agent":
            inputs = ["--prompts", str(places.prompts("train")), *_repeated("--reward", map(_named, self.rewards))]
            inputs += ["--max-new-tokens", str(self.max_new_tokens), *self._templates]
        else:
            inputs = _repeated("--data", self.data or (str(places.pairs),))
            if not self.data and places.held_out.exists():
                inputs += ["--eval-data", str(places.held_out)]
            inputs += _options(self.template_options)
        return [
            *("train", _TRAINED_BY.get(self.method, self.method), "--model", self.model, *inputs),
            *("--seed", str(self.seed), "--out", str(places.guide)),
            *TRAINING[self.method],
            *self.common,
            *self.train_flags,
            *self.existing,
        ]

    def _calibrate(self) -> list[str]:
        strengths = ["--strengths", ",".join(f"{number:g}" for number in self.strengths)] if self.strengths else []
        return [
            *("calibrate", str(self.places.guide), "--model", self.model),
            *("--prompts", str(self.places.prompts("validation"))),
            *_repeated("--reward", self.rewards or self.measured),
            *self._sentences,
            *_repeated("--gold", self.golds),
            *strengths,
            *("--max-new-tokens", str(self.max_new_tokens), "--batch-size", str(self.batch_size)),
            *("--seeds", str(self.seed), "--write", "--out", str(self.places.calibration)),
            *self._templates,
            *self.common,
            *self.calibrate_flags,
            *self.existing,
        ]

    def _report(self) -> list[str]:
        return ["compare", str(self.places.recipe), "--out", str(self.places.report), *self.common, *self.existing]

    @property
    def _sentences(self) -> list[str]:
        return [] if self.towards is None else ["--towards", self.towards, "--away", str(self.away)]

    @property
    def _templates(self) -> list[str]:
        return [*([] if self.template == "auto" else [f"--{self.template}"]), *_options(self.template_options)]


def shown(command: Sequence[str]) -> str:
    """A command as it may be pasted into a shell."""
    return shlex.join(["trimtab", *command])


def flags_of(text: str, flag: str) -> tuple[str, ...]:
    """What a flag that hands on other flags holds. Raises OptionError for an open quote."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise OptionError(f"{flag} cannot be read as flags ({error}). Close the quote.") from None


def say_prompts(parts: Splits, made: str) -> None:
    """Say what the prompts are for, and where those for the calibration are too few for it to name a strength."""
    from trimtab.making.calibration import too_few

    options.say(
        f"prompts: {len(parts.train)} {made}, {len(parts.validation)} to calibrate on, {len(parts.test)} to report on"
    )
    if why := too_few(len(parts.validation)):
        options.say(f"no strength will be named: {why} --num-validation says how many calibrate")


def with_stage(message: str, stage: str, *, of_make: Mapping[str, str], of_stage: Mapping[str, str]) -> str:
    """An error of a stage, in which a flag that make itself does not have is said to go into --STAGE-flags.

    `of_make` and `of_stage` hold the flags of make and of the stage's command, by their settings. What stands between
    backticks, another command, stays.
    """
    if stage == REPORT:  # it is handed no flags
        return message
    handed_on = _written(of_stage) - _written(of_make)
    parts = message.split("`")
    parts[::2] = [
        _FLAG.sub(lambda found: _handed_on(found, stage) if found["flag"] in handed_on else found[0], part)
        for part in parts[::2]
    ]
    return "`".join(parts)


def _handed_on(found: re.Match[str], stage: str) -> str:
    """A flag with the one that it goes into; a number behind it goes there too, as one would type it."""
    if found["number"]:
        return f'--{stage}-flags="{found[0]}"'
    return f"{found[0]} in --{stage}-flags"


def _written(flags: Mapping[str, str]) -> set[str]:
    return {found["flag"] for text in flags.values() for found in _FLAG.finditer(text)}


def words(args: argparse.Namespace, names: Mapping[str, str]) -> tuple[str, ...]:
    """Flags of make that a stage takes too, with their values, as far as they were given."""
    found: list[str] = []
    for name, flag in names.items():
        value = getattr(args, name)
        if value is True:
            found.append(flag)
        elif value not in (None, False):
            found += [flag, str(value)]
    return tuple(found)


def _repeated(flag: str, values: Sequence[str] | map[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]


def _options(given: Sequence[tuple[str, object]]) -> list[str]:
    return _repeated("--template-option", [f"{name}={json.dumps(value)}" for name, value in given])


def _named(text: str) -> str:
    """A reward with its name written out, which `train agent` wants."""
    reward = reward_of(text)
    return f"{reward.name}={reward.source}:{reward.multiplier:g}"


def reward_of(text: str) -> AgentReward:
    """A reward that was checked before."""
    from trimtab.cli.train.rewards import reward_argument

    return reward_argument(text)


_FLAG = re.compile(r"(?P<flag>(?<![\w-])--[a-z][a-z-]*)(?P<number> -?\d(?:[\w.,+-]*\w)?)?")

_ALWAYS = ("model", "towards", "away", "judge", "data", "method", "max_new_tokens", "seed")
_ONCE_TRAINED = ("rewards", "pairs_flags", "train_flags")
"""What only pairs and training depend on: it may change until the training has begun."""


def settings_of(plan: Plan, prompts: Mapping[str, str]) -> dict[str, Mapping[str, object]]:
    """What a make that is continued may have to share with the one that was begun, beside what its stages check."""
    facts = dataclasses.asdict(plan)
    for name in ("pairs_flags", "train_flags"):
        facts[name] = shlex.join(facts[name])
    return {"given": {_flag(name): facts[name] for name in (*_ALWAYS, *_ONCE_TRAINED)}, "prompts": dict(prompts)}


def must_stay(plan: Plan, settings: Mapping[str, Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    """Those of the settings that cannot change any more."""
    begun = any(path.exists() for path in (plan.places.guide, plan.places.unfinished))
    named = {_flag(name) for name in (_ALWAYS + _ONCE_TRAINED if begun else _ALWAYS)}
    return {**settings, "given": {flag: value for flag, value in settings["given"].items() if flag in named}}


def _flag(name: str) -> str:
    return "--reward" if name == "rewards" else f"--{name.replace('_', '-')}"
