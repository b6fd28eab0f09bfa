"""A claim's recipe: what is held fixed, the stages that make its rows, the rule that decides. Read without torch.

`recipes/claims/NAME/recipe.yaml` says it all. A stage is a command (`run`) or a recipe of `trimtab compare` beside it
(`compare`); both are templates, and `$name` in them stands for a value of the scale: `here` (two processor cores),
`paper` (the papers' own sizes, on a cluster) or `tiny` (whether the whole graph runs). Values that nobody has but the
reader (`BY_HAND`) are given by hand.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import DataError, OptionError, unknown_name

CLAIMS = Path(__file__).resolve().parent
REPOSITORY = CLAIMS.parents[1]
SCALES = ("here", "paper", "tiny")
BY_HAND = ("data", "models")
"""Values that no recipe has: where the reader keeps pairs and prompts, and GGUF files."""
KEYS = ("row", "claim", "paper", "question", "fixed", "changed", "verdict", "equal_kl", "shares", "stages", "scales")
OPTIONAL = ("changed", "equal_kl", "shares")
STAGE_KEYS = ("name", "run", "compare", "makes", "hours", "rows")


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a claim: a command, or a comparison."""

    name: str
    run: str | None
    """The command, a template."""
    compare: str | None
    """The file of a comparison beside the recipe, a template."""
    makes: str | None
    """What the command leaves, a template: a stage whose output is gone is made again."""
    hours: Mapping[str, float]
    """Scale -> how long it takes: an estimate, until a run has measured it."""
    rows: str | None
    """A file of JSON lines that is kept beside the recipe, a template; a comparison's answers always are."""

    @property
    def keeps_rows(self) -> bool:
        return self.compare is not None or self.rows is not None


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a run is."""

    hardware: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a recipe.yaml says."""

    directory: Path
    row: int
    """Its place on the page."""
    claim: str
    paper: Mapping[str, str]
    """`figure`: what the paper reports; `where`: in which paper, and where in it."""
    question: str
    fixed: Mapping[str, str]
    """What is held fixed, in words, beside the templates."""
    changed: tuple[str, ...]
    """What was changed after somebody had looked at rows."""
    verdict: tuple[Mapping[str, Any], ...]
    """The tests that decide (`verdicts.py`)."""
    stages: tuple[Stage, ...]
    scales: Mapping[str, Scale]
    equal_kl: tuple[Mapping[str, Any], ...] = ()
    """Tables of gains at equal KL: of the `rows` of a stage, in a `reward`, at so many `nats`."""
    shares: str | None = None
    """The name of a working directory that other claims have too: what they make alike is made once."""

    @property
    def name(self) -> str:
        return self.directory.name

    def rows_of(self, stage: str) -> Path:
        """Where the rows of a stage are kept."""
        return self.directory / "rows" / f"{stage}.jsonl.gz"

    def hours(self, scale: str) -> float:
        return sum(stage.hours[scale] for stage in self.stages)


def names() -> list[str]:
    """The claims there are, in the order of the page."""
    found = [path.parent.name for path in CLAIMS.glob("*/recipe.yaml")]
    return sorted(found, key=lambda name: (read(name).row, name))


def read(name: str) -> Claim:
    """The recipe of a claim by name. Raises OptionError where there is none, DataError where it is not whole."""
    path = CLAIMS / name / "recipe.yaml"
    if not path.is_file():
        raise unknown_name("claim", name, [one.parent.name for one in CLAIMS.glob("*/recipe.yaml")])
    return read_file(path)


def read_file(path: Path) -> Claim:
    """The recipe of a file."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"no YAML ({error}).", path=path) from None
    if not isinstance(found, Mapping):
        raise DataError("a claim is a mapping of keys to values.", path=path)
    problems = [f"{key} is missing" for key in KEYS if key not in found and key not in OPTIONAL]
    problems += [f"{key} is no key; accepted: {', '.join(KEYS)}" for key in found if key not in KEYS]
    if problems:
        raise DataError(f"{'; '.join(problems)}.", path=path)
    scales = {name: _scale(name, found["scales"], path) for name in SCALES}
    return Claim(
        path.resolve().parent,
        found["row"],
        found["claim"],
        found["paper"],
        found["question"],
        found["fixed"],
        tuple(found.get("changed") or ()),
        tuple(found["verdict"]),
        tuple(_stage(one, path) for one in found["stages"]),
        scales,
        tuple(found.get("equal_kl") or ()),
        found.get("shares"),
    )


def _scale(name: str, scales: Mapping[str, Any], path: Path) -> Scale:
    if name not in scales:
        raise DataError(f"scales lacks {name}.", path=path)
    given = scales[name]
    return Scale(given["hardware"], {key: str(value) for key, value in (given.get("values") or {}).items()})


def _stage(given: Mapping[str, Any], path: Path) -> Stage:
    unknown = [key for key in given if key not in STAGE_KEYS]
    if unknown or "name" not in given or ("run" in given) == ("compare" in given):
        raise DataError(
            f"a stage has a name, run or compare, and of {', '.join(STAGE_KEYS)}: {dict(given)}.", path=path
        )
    hours = {"tiny": 0.0, **given.get("hours", {})}
    if {*hours} != {*SCALES}:
        raise DataError(f"stage {given['name']} needs hours for here and paper.", path=path)
    return Stage(
        given["name"],
        given.get("run"),
        given.get("compare"),
        given.get("makes"),
        hours,
        given.get("rows"),
    )


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its values. Raises OptionError that names a value which is not given."""
    try:
        return string.Template(template).substitute(values)
    except KeyError as error:
        name = error.args[0]
        way_out = f"--{name} DIR" if name in BY_HAND else f"--set {name}=..."
        raise OptionError(f"The recipe needs a value for {name}, and none is given: {way_out}") from None
