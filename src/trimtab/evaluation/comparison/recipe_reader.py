"""A recipe read from YAML and checked: every problem at once, each with its place and the nearest known name."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trimtab.core import SamplingParams
from trimtab.documents import read_yaml
from trimtab.errors import DataError, OptionError, unknown_name
from trimtab.evaluation.comparison import recipe_values as values
from trimtab.evaluation.comparison.recipe import (
    JUDGED_BY,
    MEASURED,
    ROLES,
    SPLITS,
    TRAINED_ON,
    MethodSpec,
    PromptSource,
    Recipe,
    Reward,
    leads_nowhere,
)
from trimtab.fields import table
from trimtab.methods.method import Strength
from trimtab.methods.options import TEMPLATE
from trimtab.models.quantize import KINDS

T = TypeVar("T")

BUILTIN_PROMPTS = ("demo", "training")
TEMPLATES = ("auto", "chat", "raw")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_NOT_IN_A_RECIPE = (
    *("weights", "guide_plausibility", "gates", "seed", "trace", "num_alternatives", "forced", "draft", "draft_tokens"),
    "constraint",
)
"""Fields of `SamplingParams` that methods, strengths and seeds decide."""
_DECODING: Mapping[str, Callable[[Any], object]] = {
    name: values.of_field(entry) for name, entry in table(SamplingParams).items() if name not in _NOT_IN_A_RECIPE
}
"""Fields of `SamplingParams` that a recipe may set."""

CheckMethod = Callable[[str, Mapping[str, Any], Sequence[Strength]], list[str]]
"""`policies.methods.check_method`: every problem of a method's options and strengths, as sentences."""


@dataclasses.dataclass(frozen=True, slots=True)
class KnownMethod:
    """What the reader must know of a method."""

    options: Sequence[str]
    default_strengths: tuple[Strength, ...]


def read_recipe(path: Path, methods: Mapping[str, KnownMethod], check: CheckMethod) -> Recipe:
    """The recipe of a file.

    Raises DataError where it is no YAML or no mapping, and OptionError with every problem of its content.
    """
    if path.is_dir():
        way_out = "give a recipe (.yaml), or --report-only to draw the report of a run again."
        raise DataError(f"this is a directory; {way_out}", path=path)
    source = read_yaml(path, extra="compare", what="a recipe")
    return parse_recipe(source, path.resolve().parent, methods, check, name=str(path))


def parse_recipe(
    source: Any, directory: Path, methods: Mapping[str, KnownMethod], check: CheckMethod, *, name: str = "The recipe"
) -> Recipe:
    """A recipe from what its YAML says; its paths are looked up when they are used. Raises OptionError with every
    problem."""
    if not isinstance(source, Mapping):
        raise DataError(f"a recipe is a mapping of keys to values, and this is {values.kind(source)}.", path=name)
    problems: list[str] = []
    recipe = _recipe(Section(source, "", problems), source, directory, methods, check)
    if problems:
        listed = problems[0] if len(problems) == 1 else "\n".join(f"({i}) {p}" for i, p in enumerate(problems, 1))
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise OptionError(f"{name} has {count}:\n{listed}")
    return recipe


def path_problems(recipe: Recipe) -> list[str]:
    """Paths and sentences of a recipe that lead nowhere, with their places: better said before an hour of decoding than
    after."""
    found = [
        f"methods[{index}].{name}: {why}"
        for index, spec in enumerate(recipe.methods)
        for name, value in spec.options.items()
        if name != TEMPLATE
        for why in leads_nowhere(value, recipe.directory)
    ]
    found += [
        f"rewards.{reward.name}.scorer: {why}"
        for reward in recipe.rewards
        for why in leads_nowhere(reward.scorer, recipe.directory)
    ]
    return found


def role_problems(recipe: Recipe) -> list[str]:
    """Roles of rewards that cannot be true of the recipe's methods, with their places."""
    found = []
    for reward in recipe.rewards:
        place, choosing = f"rewards.{reward.name}.role", recipe.chosen_by(reward)
        if reward.role == TRAINED_ON and recipe.role_of(reward) != TRAINED_ON:
            listed = ", ".join(spec.name for spec in recipe.methods)
            found.append(f"{place}: is trained_on, and none of the methods ({listed}) was trained; leave it out.")
        if reward.role == JUDGED_BY and choosing:
            listed = ", ".join(choosing)
            found.append(f"{place}: is judged_by, and {listed} chooses its answers by that scorer; leave it out.")
    return found


class Section:
    """One mapping of a recipe: what is known is taken from it, what is left over is a problem."""

    def __init__(self, value: Any, place: str, problems: list[str]) -> None:
        self.place = place
        self.problems = problems
        self._left: dict[str, Any] = {}
        self._known: list[str] = []
        self._given: set[str] = set()
        if isinstance(value, Mapping):
            self._left = {str(key): item for key, item in value.items()}
            self._given = {name for name, item in self._left.items() if item is not None}
        elif value is not None:
            self.problem("", f"is {values.kind(value)}; give a mapping of keys to values.")
        self._broken = value is not None and not isinstance(value, Mapping)

    def at(self, name: str) -> str:
        """The place of a key, as `methods[2].strengths`."""
        return f"{self.place}.{name}" if self.place and name else self.place or name

    def problem(self, name: str, sentence: str) -> None:
        self.problems.append(f"{self.at(name) or 'the recipe'}: {sentence}")

    def take(self, name: str, read: Callable[[Any], T], default: T, *, required: str = "") -> T:
        """The value of a key. `required` says what it is for, where leaving it out is a problem."""
        self._known.append(name)
        if self._left.get(name) is None:
            self._left.pop(name, None)
            if required and not self._broken:
                self.problem(name, f"is missing; {required}.")
            return default
        try:
            return read(self._left.pop(name))
        except OptionError as error:
            self.problem(name, str(error))
            return default

    def section(self, name: str) -> Section:
        """A mapping below a key; empty where the key is left out."""
        self._known.append(name)
        return Section(self._left.pop(name, None), self.at(name), self.problems)

    def has(self, name: str) -> bool:
        return name in self._left

    def num_given(self, *names: str) -> int:
        """How many of the names the mapping gave."""
        return sum(name in self._given for name in names)

    def items(self) -> dict[str, Any]:
        """All that is left, for a mapping whose keys are names of the reader's own."""
        left, self._left = self._left, {}
        return left

    def finish(self, kind: str = "key", more: Sequence[str] = ()) -> dict[str, Any]:
        """Report what nobody knows, unless it is among `more`, which is returned."""
        rest = {name: value for name, value in self._left.items() if name in more}
        for name in self._left:
            if name not in rest:
                error = unknown_name(kind, name, [*self._known, *more])
                self.problem(name, str(error))
        return rest


def _recipe(
    top: Section, source: Mapping[str, Any], directory: Path, methods: Mapping[str, KnownMethod], check: CheckMethod
) -> Recipe:
    rewards = _rewards(top.section("rewards"))
    known = [reward.name for reward in rewards]
    none: tuple[str, ...] = ()
    objectives = top.take("objectives", values.names("reward", known, most=2), none)
    recipe = Recipe(
        title=top.take("title", values.text, "A comparison"),
        model=top.take("model", values.text, "", required='give a hub id, a directory, a .gguf file or "demo"'),
        dtype=top.take("dtype", values.one_of("dtype", DTYPES), "auto"),
        quantize=top.take("quantize", values.one_of("kind of quantisation", KINDS), None),
        template=top.take("template", values.one_of("template", TEMPLATES), "auto"),
        template_options=top.take("template_options", values.options, {}),
        prompts=_prompts(top.section("prompts")),
        decoding=_decoding(top.section("decoding")),
        seeds=top.take("seeds", values.seeds, (0,)),
        batch_size=top.take("batch_size", values.whole(1), 16),
        rewards=rewards,
        objectives=objectives,
        reference=_reference(top.section("reference"), objectives),
        kl_budget=top.take("kl_budget", values.number(0), None),
        methods=_methods(top, methods, check),
        headline=top.take("headline", values.name, None),
        source=dict(source),
        directory=directory,
    )
    _check_headline(top, recipe)
    if recipe.template_options and recipe.template == "raw":
        top.problem(
            "template_options", "are for the chat template, which `template: raw` leaves out; give one of them."
        )
    top.finish()
    return recipe


def _check_headline(top: Section, recipe: Recipe) -> None:
    """A problem for a headline that is no method of one strength, or that the validation prompts would choose."""
    named = next((spec for spec in recipe.methods if spec.name == recipe.headline), None)
    if recipe.headline is None:
        return
    if named is None or named == recipe.baseline:
        others = [spec.name for spec in recipe.methods if spec != recipe.baseline]
        top.problem("headline", str(unknown_name("method beside the base", recipe.headline, others)))
    elif len(named.strengths) != 1:
        top.problem(
            "headline", f"is {named.name!r}, which has {len(named.strengths)} strengths; name one of a single one."
        )
    elif "validation" in recipe.prompts:
        top.problem("headline", "is chosen on the validation prompts, which there are; leave one of the two out.")


def _prompts(section: Section) -> dict[str, PromptSource]:
    found: dict[str, PromptSource] = {}
    none: tuple[str, ...] = ()
    for split in SPLITS:
        present = section.has(split)
        one = section.section(split)
        if not present:
            continue
        found[split] = PromptSource(
            path=one.take("path", values.text, None),
            builtin=one.take("builtin", values.one_of("list of prompts", BUILTIN_PROMPTS), None),
            start=one.take("start", values.whole(0), 0),
            num=one.take("num", values.whole(1), None),
            ignore_columns=one.take("ignore_columns", values.texts, none),
        )
        if one.num_given("path", "builtin") != 1:
            one.problem("", "has a path and a builtin list, or neither; give one of the two.")
        one.finish()
    if "test" not in found:
        section.problem("test", "is missing; give the prompts that the report is about.")
    section.finish("split")
    return found


def _decoding(section: Section) -> dict[str, Any]:
    good: dict[str, Any] = {}
    for name, value in section.finish(more=list(_DECODING)).items():
        try:
            good[name] = _DECODING[name](value)
            SamplingParams(**{"max_new_tokens": sys.maxsize, name: good[name]})
        except OptionError as error:
            section.problem(name, str(error))
            good.pop(name, None)
    try:
        SamplingParams(**good)
    except OptionError as error:  # one value does not go with another
        section.problem("min_tokens", str(error))
    return good


def _rewards(section: Section) -> list[Reward]:
    found: list[Reward] = []
    for name, value in section.items().items():
        one = Section(value, section.at(name), section.problems)
        try:
            values.name(name)
        except OptionError as error:
            one.problem("", f"its name {error}")
        reward = Reward(
            name,
            one.take("scorer", values.text, "", required="give sentiment, offence, a reward model's directory, ..."),
            one.take("weight", values.number(), 1.0),
            one.take("role", values.one_of("role", ROLES), MEASURED),
        )
        if reward.weight == 0:
            one.problem("weight", "is 0, which makes every answer equal; give −1 for a cost, else 1.")
        if reward.file_name.lower() in {other.file_name.lower() for other in found}:
            one.problem("", f"has the same file name as another ({reward.file_name}); give it another name.")
        one.finish()
        found.append(reward)
    if not found:
        section.problem("", "is missing; give at least one, as `rewards: {sentiment: {scorer: sentiment}}`.")
    return found


def _reference(section: Section, objectives: Sequence[str]) -> dict[str, float]:
    given = section.items()
    found: dict[str, float] = {}
    for name, value in given.items():
        if name not in objectives:
            section.problem(name, str(unknown_name("objective", name, objectives)))
            continue
        try:
            found[name] = values.number()(value)
        except OptionError as error:
            section.problem(name, str(error))
    missing = [name for name in objectives if name not in given]
    if len(objectives) == 2 and missing:
        section.problem(missing[0], "is missing; a hypervolume needs a reference point, below what any method earns.")
    return found


def _methods(top: Section, known: Mapping[str, KnownMethod], check: CheckMethod) -> list[MethodSpec]:
    nothing: list[Any] = []
    listed = top.take("methods", _list_of_mappings, nothing, required="give a list of methods, `base` among them")
    found = [_method(Section(value, f"methods[{i}]", top.problems), known, check) for i, value in enumerate(listed)]
    if listed and not any(spec.method == "base" for spec in found):
        top.problem("methods", "none of them is `base`, which differences and costs are measured against; add it.")
    counts = Counter(spec.name for spec in found if spec.name)
    for name in (name for name, count in counts.items() if count > 1):
        top.problem("methods", f"{counts[name]} of them are named {name!r}; give each a name of its own.")
    return found


def _method(section: Section, known: Mapping[str, KnownMethod], check: CheckMethod) -> MethodSpec:
    method = section.take(
        "method", values.one_of("method", sorted(known)), "", required="give one of trimtab's methods"
    )
    name = section.take("name", values.name, method)
    entry = known.get(method)
    strengths = section.take("strengths", values.strengths, entry.default_strengths if entry else ())
    none: tuple[Strength, ...] = ()
    preferences = section.take("preferences", values.strengths, none)
    mismatched = strengths and len(preferences) != len(strengths)
    if preferences and (mismatched or not all(isinstance(one, tuple) for one in preferences)):
        section.problem("preferences", "is not one list of numbers for each strength, such as [[1, 0], [0, 1]].")
    max_prompts = section.take("max_prompts", values.whole(1), None)
    if entry is None:  # nothing is known of its options
        section.items()
        return MethodSpec(name, method, strengths)
    options = section.finish(f"option of {method}", more=entry.options)
    section.problems += [f"{section.place}: {problem}" for problem in check(method, options, strengths)]
    return MethodSpec(name, method, strengths, options, preferences, max_prompts)


def _list_of_mappings(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise OptionError(f"is {values.kind(value)}; give a list of methods, each a mapping with `method`.")
    return value
