"""What a comparison is made of: one YAML file that names the model, prompts, rewards and methods.

docs/evaluation/compare.md describes the file.

Paths in a recipe are relative to the recipe's file. `recipe_reader.read_recipe` reads and checks one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.core import SamplingParams
from trimtab.errors import OptionError
from trimtab.methods.method import Strength
from trimtab.methods.options import TEMPLATE, texts_of
from trimtab.storage.scorers import SCORERS, is_function_name, module_file
from trimtab.storage.sentences import is_sentence, read_weighed, sentence_name

SPLITS = ("validation", "test")
"""Strengths are chosen on the first and reported on the second."""

REDRAWN = "redrawn"
"""The split of the base's answers to the test prompts under further seeds: what noise alone makes of a front."""

MEASURED, TRAINED_ON, JUDGED_BY = "measured", "trained_on", "judged_by"
ROLES = (MEASURED, TRAINED_ON, JUDGED_BY)
"""What a reward is to the methods, as far as the recipe says: nothing but measured; what one of them was trained on,
itself or through pairs that it labelled; or a judge that none of them has seen."""


SCORER = "scorer"
"""The option of a method that is a scorer, as a reward's is."""


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Where the prompts of a split come from: rows `start` to `start + num` of a file, or of a list that ships."""

    path: str | None = None
    """As the recipe writes it."""
    builtin: str | None = None
    start: int = 0
    num: int | None = None
    """None: all that are left."""
    ignore_columns: tuple[str, ...] = ()
    """Columns of the file that are as if they were not there."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A scorer and what it is to the methods."""

    name: str
    scorer: str
    weight: float = 1.0
    """Multiplies the score, so that HIGHER IS BETTER: −1 for a cost."""
    role: str = MEASURED

    @property
    def file_name(self) -> str:
        """The name as a part of a file's, for no other reward the same: see `file_part`."""
        return file_part(self.name)


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One line of the comparison: a method with its own options, at several strengths."""

    name: str
    """The label; unique in a recipe."""
    method: str
    """The key of the method, one of `policies.methods.METHODS`."""
    strengths: tuple[Strength, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    """As the recipe writes them."""
    preferences: tuple[Strength, ...] = ()
    """The preference vector that each strength is meant for, where the strength itself is none (one dial; the number of
    a policy)."""
    max_prompts: int | None = None
    """Only the first so many prompts of each split, for methods that cost much."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A comparison: methods × strengths × seeds × prompts on one frozen model."""

    title: str
    model: str
    prompts: Mapping[str, PromptSource]
    """Split -> source; `test` is always there."""
    rewards: Sequence[Reward]
    methods: Sequence[MethodSpec]
    dtype: str = "auto"
    quantize: str | None = None
    """What the weights are held in on a CPU (`load_model`)."""
    template: str = "auto"
    """What a prompt of plain text is: `chat`, `raw`, or `auto`: chat where the model has a template."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is told with each prompt: `enable_thinking`, ..."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SamplingParams`."""
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 16
    objectives: tuple[str, ...] = ()
    """Two names of rewards make a Pareto front."""
    reference: Mapping[str, float] = field(default_factory=dict)
    """The reference point of the hypervolume: objective -> value."""
    kl_budget: float | None = None
    """Strengths whose mean KL on validation prompts exceeds it, in nats an answer, are not chosen."""
    headline: str | None = None
    """The method that the first sentence of the report is about, of one strength; it was chosen on other prompts."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """The recipe as it was written."""
    directory: Path = Path()
    """What its paths are relative to."""

    @property
    def params(self) -> SamplingParams:
        """How every answer is decoded; traced at every strength, so that the cost of a trace is nobody's."""
        return SamplingParams(trace=True, **self.decoding)

    @property
    def baseline(self) -> MethodSpec:
        """The unguided model: what differences and costs are measured against."""
        return next(spec for spec in self.methods if spec.method == "base")

    @property
    def main_reward(self) -> Reward:
        """The first reward that something was trained on; without any, the first that does not judge, or the first."""
        for role in (TRAINED_ON, MEASURED):
            for reward in self.rewards:
                if reward.role == role:
                    return reward
        return self.rewards[0]

    def role_of(self, reward: Reward) -> str:
        """The role that a report may speak of: nothing was trained on a reward where no method was trained at all."""
        claimed = reward.role == TRAINED_ON and not any(self.may_be_trained(spec) for spec in self.methods)
        return MEASURED if claimed else reward.role

    def may_be_trained(self, spec: MethodSpec) -> bool:
        """Whether a method reads anything that could have been trained: a guide, a policy, a reward model, a writer.

        Not the base itself, a lexicon, a function of one's own, or the text of a template.
        """
        scorer = spec.options.get(SCORER)
        knows_nothing = scorer in SCORERS or (isinstance(scorer, str) and is_function_name(scorer))
        names = {*spec.options} - {TEMPLATE, *([SCORER] if knows_nothing else [])}
        return any(text != self.model for name in names for text in texts_of(spec.options[name]))

    def chosen_by(self, reward: Reward) -> list[str]:
        """The methods that choose among answers by this very reward, trained or not: best-of-N by its own judge."""
        scorer = self.scorer_of(reward)
        return [spec.name for spec in self.methods if self.options_of(spec).get(SCORER) == scorer]

    @property
    def is_pareto(self) -> bool:
        return len(self.objectives) == 2

    @property
    def joint(self) -> tuple[str, ...]:
        """The rewards that one answer may better all at once: the objectives, else all; empty where there is one."""
        names = self.objectives or tuple(reward.name for reward in self.rewards)
        return names if len(names) > 1 else ()

    @property
    def redraws(self) -> tuple[tuple[int, ...], ...]:
        """The seeds under which the base answers the test prompts anew, for a point of a front each; never of `seeds`.

        With the base's own row they are as many points as the longest sweep has, each a mean over as many seeds. Empty
        without two objectives.
        """
        if not self.is_pareto:
            return ()
        num_points = max(len(spec.strengths) for spec in self.methods)
        stride = max(self.seeds) - min(self.seeds) + 1
        return tuple(tuple(seed + point * stride for seed in self.seeds) for point in range(1, num_points))

    def options_of(self, spec: MethodSpec) -> dict[str, Any]:
        """A method's options with the paths that lead somewhere from the recipe's directory made whole."""
        return {
            name: resolved_scorer(value, self.directory) if name == SCORER else resolved(value, self.directory)
            for name, value in spec.options.items()
        }

    def scorer_of(self, reward: Reward) -> str:
        """What `load_scorer` is given: a name, or a path made whole."""
        return str(resolved_scorer(reward.scorer, self.directory))

    @property
    def own_scorers(self) -> list[str]:
        """The functions of one's own that score here, of rewards and of methods, as `load_scorer` is given them."""
        named = [self.scorer_of(reward) for reward in self.rewards]
        named += [str(options[SCORER]) for spec in self.methods if SCORER in (options := self.options_of(spec))]
        return [name for name in dict.fromkeys(named) if is_function_name(name)]


def file_part(name: str) -> str:
    """A name as a part of a file's: letters, digits, '.', '_', '+' and '-', at most 80 of them.

    A name that has to be changed for that gets a digest of itself at its end, so that no two names share a file.
    """
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name)[:80]
    if plain == name and plain.strip("."):
        return plain
    return f"{plain.strip('.-')}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}".lstrip("-")


def resolved(value: Any, directory: Path) -> Any:
    """An option with its paths made whole: texts that name something below `directory`, in lists and mappings too.

    A bare word is a name, never a path (`sentiment`; write `./sentiment` for the directory). A text with a weight
    behind a colon (`runs/a:0.5`) is a path where what stands before the colon is one.
    """
    if isinstance(value, Mapping):
        return {key: resolved(item, directory) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(item, directory) for item in value]
    if isinstance(value, str) and is_sentence(value):
        try:
            return _whole_sentence(value, directory)
        except OptionError:
            return value
    if not isinstance(value, str) or "/" not in value:
        return value
    path, colon, tail = value.rpartition(":")
    whole, beside = (directory / Path(value).expanduser()), (directory / Path(path).expanduser())
    if whole.exists():
        return str(whole.resolve())
    return f"{beside.resolve()}:{tail}" if colon and path and beside.exists() else value


def _whole_sentence(name: str, directory: Path) -> str:
    """A guide made of a sentence by what it says, whatever file that is in. Raises OptionError as `read_weighed`."""
    guide, weight = read_weighed(name, home=directory)
    return sentence_name(guide) + ("" if weight is None else f":{weight:g}")


def resolved_scorer(value: Any, directory: Path) -> Any:
    """A scorer with its path made whole, as `resolved` does; `module:function` too, where `directory` has the module.

    It becomes `FILE.py:function`. A module that is not there is left to `load_scorer`, which knows where else to look.
    """
    if isinstance(value, str) and is_function_name(value):
        target, _, function = value.rpartition(":")
        beside = directory / Path(target).expanduser()
        file = beside if target.endswith(".py") and beside.is_file() else module_file(target, directory)
        return value if file is None else f"{file.resolve()}:{function}"
    return resolved(value, directory)


def leads_nowhere(value: Any, directory: Path) -> list[str]:
    """Why texts of an option lead nowhere, a sentence each.

    Those are texts that can only be paths, with a slash and not a hub id's form, and are not there; and sentences that
    cannot be read.
    """
    if isinstance(value, str) and is_sentence(value):
        try:
            _whole_sentence(value, directory)
        except OptionError as error:
            return [str(error)]
        return []
    if not isinstance(value, str):
        return [why for text in texts_of(value) for why in leads_nowhere(text, directory)]
    if "/" not in value or resolved(value, directory) != value:
        return []
    could_be_a_hub_id = re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", value) is not None
    wholes = [Path(text).expanduser() for text in (value, value.rpartition(":")[0]) if text]
    if could_be_a_hub_id or any(path.is_absolute() and path.exists() for path in wholes):
        return []
    return [f"there is no {value}; paths start from {directory}."]


def strength_text(strength: Strength) -> str:
    """A strength as a reader should see it: `1`, or `0.5, 0.5`."""
    numbers = strength if isinstance(strength, tuple) else (strength,)
    return ", ".join(f"{number:g}" for number in numbers)
