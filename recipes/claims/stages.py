"""The stages of a claim, one after another: printed with their times, run, recognised as finished, kept.

A finished stage leaves a stamp with the digest of what it ran, of its scripts and of the stages whose output it names.
A stage whose digest is another than its stamp's is refused rather than run over what it made: the recipe was changed,
and rows of two recipes are not one table. Claims that begin alike may share a working directory (`shares`): what one
of them has made, the next finds finished.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.claims import files, rows
from recipes.claims.recipe import BY_HAND, REPOSITORY, Claim, Stage, filled
from trimtab.errors import OptionError, TrimtabError, unknown_name

CARDS = ("guide.json", "reward.json", "config.json")
Run = Callable[[list[str]], int]
Say = Callable[[str], None]


class StageError(TrimtabError):
    """A stage whose command failed, or which did not leave what it was to make."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage with its values: what is run, and how it is known again."""

    stage: Stage
    command: tuple[str, ...]
    comparison: str | None
    """The comparison that is written to `work/NAME.yaml` before the command runs."""
    makes: Path
    digest: str
    needs: tuple[str, ...]
    """The stages whose output it names, and theirs."""

    @property
    def line(self) -> str:
        return shlex.join(self.command)

    @property
    def output(self) -> Path:
        """What later stages name: a file, or the directory of a guide, a model or a reward."""
        return self.makes.parent if self.makes.name in CARDS else self.makes


@dataclass(frozen=True, slots=True)
class Plan:
    """A claim's stages at a scale, in a working directory."""

    claim: Claim
    scale: str
    work: Path
    stages: tuple[Planned, ...]
    data: str | None
    as_fixed: bool
    """Whether the rows are the recipe's: at the scale here, with no value but directories given by hand."""

    def stamp(self, planned: Planned) -> Path:
        return self.work / "stages" / f"{planned.stage.name}.json"

    def state(self, planned: Planned) -> str:
        """`finished`, `to do`, or `changed`: finished, but by another recipe."""
        stamp = self.stamp(planned)
        if not stamp.exists():
            return "to do"
        if json.loads(stamp.read_text(encoding="utf-8"))["digest"] != planned.digest:
            return "changed"
        return "finished" if planned.makes.exists() else "to do"


DIRECTORIES = (*BY_HAND, "work", "recipes", "claim")
"""Values that say where something lies; what lies there is what counts, and no recipe fixes it."""


def plan(claim: Claim, scale: str, work: Path, given: Mapping[str, str]) -> Plan:
    """The stages of a claim with all values filled in.

    `given` are values by name, which go before those of the scale. Raises OptionError for one that no stage uses, or
    that is missing.
    """
    work = work.resolve()
    given = {name: str(Path(value).resolve()) if name in BY_HAND else value for name, value in given.items()}
    values = {
        "trimtab": f"{shlex.quote(sys.executable)} -m trimtab.cli.main",
        "train": f"{shlex.quote(sys.executable)} -m trimtab.cli.main train",
        "python": shlex.quote(sys.executable),
        "work": str(work),
        "recipes": str(REPOSITORY / "recipes"),
        "claim": str(claim.directory),
        **claim.scales[scale].values,
        **given,
    }
    known = used(claim)
    for name in given:
        if name in BY_HAND and name not in known:
            raise OptionError(f"{claim.name} reads no {name}. Leave --{name} out.")
        if name not in known:
            raise unknown_name("value", name, known - {"work", "recipes", "claim", "trimtab", "train", "python"})
    # A value may name another: the launcher of a cluster lies in the recipes.
    values = {name: filled(value, values) for name, value in values.items()}
    planned: list[Planned] = []
    for stage in claim.stages:
        planned.append(_planned(claim, stage, values, planned))
    as_fixed = scale == "here" and not {*given} - {*DIRECTORIES}
    return Plan(claim, scale, work, tuple(planned), given.get("data"), as_fixed)


def used(claim: Claim) -> set[str]:
    """The names of values that the templates of a claim hold."""
    texts = [one for stage in claim.stages for one in (stage.run, stage.makes, stage.rows) if one]
    texts += [(claim.directory / stage.compare).read_text(encoding="utf-8") for stage in claim.stages if stage.compare]
    texts += [value for scale in claim.scales.values() for value in scale.values.values()]
    return {found for text in texts for found in re.findall(r"\$\{?(\w+)", text)}


def by_hand(claim: Claim) -> list[str]:
    """What the reader of a claim has to have: names of `BY_HAND`."""
    known = used(claim)
    return [name for name in BY_HAND if name in known]


def _planned(claim: Claim, stage: Stage, values: Mapping[str, str], before: Sequence[Planned]) -> Planned:
    work = Path(values["work"])
    if stage.compare is not None:
        comparison = filled((claim.directory / stage.compare).read_text(encoding="utf-8"), values)
        recipe, out = shlex.quote(str(work / f"{stage.name}.yaml")), shlex.quote(str(work / stage.name))
        command = f"$trimtab compare {recipe} --out {out}"
        makes = work / stage.name / "report.html"
    else:
        assert stage.run is not None
        comparison, command = None, stage.run
        makes = Path(filled(stage.makes or f"$work/stages/{stage.name}.json", values))
    words = tuple(shlex.split(filled(command, values)))
    text = json.dumps([list(words), comparison])
    needed = [one for one in before if re.search(rf"{re.escape(str(one.output))}(?![\w.-])", text)]
    names = dict.fromkeys(name for one in needed for name in (*one.needs, one.stage.name))
    digest = _digest(words, text, [one.digest for one in needed], values)
    return Planned(stage, words, comparison, makes, digest, tuple(names))


def _digest(words: tuple[str, ...], text: str, needed: Sequence[str], values: Mapping[str, str]) -> str:
    """Of what a stage runs, wherever that lies: directories are named, and not where they are."""
    for name in DIRECTORIES:
        if values.get(name):
            text = text.replace(values[name], f"${name}")
    text = text.replace(sys.executable, "python")
    scripts = [files.digest(Path(word).read_bytes()) for word in words if word.endswith(".py") and Path(word).is_file()]
    return files.digest(json.dumps([*needed, text, scripts]))


def check_stage(plan: Plan, only: str | None) -> None:
    """Raise OptionError where the claim has no stage of this name."""
    names = [planned.stage.name for planned in plan.stages]
    if only is not None and only not in names:
        raise unknown_name("stage", only, names)


def describe(plan: Plan, say: Say, *, only: str | None = None) -> None:
    """Print the stages, or one of them, with their commands and times."""
    check_stage(plan, only)
    claim, scale = plan.claim, plan.claim.scales[plan.scale]
    say(f"{claim.name}: {claim.claim}")
    say(f"on {scale.hardware}; {_hours(claim.hours(plan.scale))} in all" if plan.scale != "tiny" else scale.hardware)
    if plan.scale == "paper":
        say("hours are expected, not measured: nothing of this size was run")
    for number, planned in enumerate(plan.stages, start=1):
        if only not in (None, planned.stage.name):
            continue
        hours = "" if plan.scale == "tiny" else f", {_hours(planned.stage.hours[plan.scale])}"
        say(f"\n{number}. {planned.stage.name}: {plan.state(planned)}{hours}\n   {planned.line}")


def _hours(hours: float) -> str:
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:g} hours"


def run(plan: Plan, say: Say, *, only: str | None = None, execute: Run | None = None) -> int:
    """Run the stages that are not finished; returns how many ran.

    Raises OptionError where a finished stage was made by another recipe, and StageError where a command fails.
    """
    check_stage(plan, only)
    needed = {planned.stage.name: planned.needs for planned in plan.stages}.get(only or "", ())
    num_run = 0
    for planned in plan.stages:
        name, state = planned.stage.name, plan.state(planned)
        if state == "changed":
            raise OptionError(
                f"Stage {name} in {plan.work} was run with another recipe than this, and so was what came after it. "
                "Say in the recipe what changed and why (changed), and begin in another --work."
            )
        if only in (None, name):
            if state == "finished":
                say(f"{name}: finished before")
            else:
                _execute(plan, planned, say, execute or (lambda words: _subprocess(words, plan.data)))
                num_run += 1
        elif name in needed and state != "finished":
            raise OptionError(
                f"Stage {only} needs {name}, which is not finished. Run that first, or all: leave out --stage."
            )
    return num_run


def _execute(plan: Plan, planned: Planned, say: Say, execute: Run) -> None:
    name = planned.stage.name
    (plan.work / "stages").mkdir(parents=True, exist_ok=True)
    words = list(planned.command)
    if planned.comparison is not None:
        files.write(plan.work / f"{name}.yaml", planned.comparison)
        words.append("--share-prompts")  # changes no answer, so that it is no part of what a stage is
        if (plan.work / name / "run.json").exists():
            words.append("--resume")
    plan.stamp(planned).unlink(missing_ok=True)
    say(f"{name}: {shlex.join(words)}")
    began = time.monotonic()
    code = execute(words)
    if code:
        raise StageError(f"Stage {name} ended with {code}. What it made stays; the same command goes on from there.")
    if (planned.stage.makes or planned.comparison is not None) and not planned.makes.exists():
        raise StageError(f"Stage {name} ended well and did not make {planned.makes}.")
    if planned.stage.keeps_rows:
        _keep(plan, planned, say)
    seconds = round(time.monotonic() - began)
    say(f"{name}: {seconds} s")
    stamp = {"digest": planned.digest, "command": words, "seconds": seconds}
    files.write(plan.stamp(planned), json.dumps(stamp, indent=1) + "\n")


def _keep(plan: Plan, planned: Planned, say: Say) -> None:
    """Put the rows of a stage beside the recipe; those of another scale stay in the working directory."""
    stage = planned.stage
    source = plan.work / stage.name / "answers.jsonl" if stage.compare else plan.work / str(stage.rows)
    kept = rows.packed(files.read_lines(source))
    if not kept:
        raise StageError(f"Stage {stage.name} left no rows in {source}.")
    path = plan.claim.rows_of(stage.name) if plan.as_fixed else plan.work / "rows" / f"{stage.name}.jsonl.gz"
    rows.write(path, kept)
    say(f"{stage.name}: {len(kept)} rows in {path}")


def _subprocess(words: list[str], data: str | None) -> int:
    """Run a command; what judges and scorers of recipes ask the environment for is there."""
    known = {} if data is None else {"JUDGE_DATA": data, "ARITHMETIC": f"{data}/gsm8k/test.jsonl"}
    return subprocess.run(words, cwd=REPOSITORY, check=False, env={**os.environ, **known}).returncode
