"""Which strength of each method of a run is judged: the one that is given, its only one, or the one that was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.errors import OptionError, unknown_name
from trimtab.evaluation.comparison.recipe import Recipe, strength_text
from trimtab.evaluation.comparison.recipe_reader import KnownMethod, parse_recipe
from trimtab.evaluation.comparison.records import Row
from trimtab.evaluation.comparison.run import read_run
from trimtab.evaluation.comparison.summary import cells_of, choose
from trimtab.evaluation.judging.run import Contender
from trimtab.methods.method import Strength

_NOT_OPTIONS = ("method", "name", "strengths", "max_prompts")


def contenders_of(
    directory: Path,
    rows: Sequence[Row],
    *,
    split: str = "test",
    given: Mapping[str, Strength] | None = None,
    baseline: str | None = None,
) -> tuple[Contender, list[Contender]]:
    """The baseline and the methods to compare with it, in the recipe's order.

    The baseline is the unguided model unless one is named. Strengths that are not `given` are those that the comparison
    chooses on validation prompts (`summary.choose`). Raises OptionError for a name or a strength that the run does not
    have, and where nothing says which of several strengths to take.
    """
    recipe = recipe_of_run(directory, rows)
    there = _strengths(rows, split)
    if not there:
        raise OptionError(f"{directory} has no answers to {split} prompts. Run the comparison first.")
    for name in (*(given or {}), *([baseline] if baseline else [])):
        if name not in there:
            raise unknown_name("method", name, there)
    chosen = dict(_chosen(recipe, rows, there, given or {}))
    name = baseline or recipe.baseline.name
    if name not in chosen:
        raise OptionError(f"The run has no answers of {name}, the baseline. Give --baseline {'|'.join(chosen)}.")
    others = [Contender(other, strength) for other, strength in chosen.items() if other != name]
    return Contender(name, chosen[name]), others


def recipe_of_run(directory: Path, rows: Sequence[Row]) -> Recipe:
    """The recipe that a run was made from, with the strengths that it has answers at."""
    source: Any = read_run(directory)["recipe"]
    strengths = {name: tuple(sorted(values, key=str)) for name, values in _strengths(rows, None).items()}
    known: dict[str, KnownMethod] = {}
    for item in source["methods"]:
        options = {*known[item["method"]].options} if item["method"] in known else set()
        known[item["method"]] = KnownMethod(sorted(options | {*item} - {*_NOT_OPTIONS}), ())
    # It was checked when the comparison began.
    recipe = parse_recipe(source, directory, known, lambda *_: [], name=str(directory))
    methods = [replace(spec, strengths=strengths[spec.name]) for spec in recipe.methods if spec.name in strengths]
    return replace(recipe, methods=methods)


def _strengths(rows: Sequence[Row], split: str | None) -> dict[str, set[Strength]]:
    strengths: dict[str, set[Strength]] = {}
    for row in rows:
        if split in (None, row.key.split):
            strengths.setdefault(row.key.method, set()).add(row.key.strength)
    return strengths


def _chosen(
    recipe: Recipe, rows: Sequence[Row], there: Mapping[str, set[Strength]], given: Mapping[str, Strength]
) -> list[tuple[str, Strength]]:
    choices = choose(recipe, cells_of(recipe, rows, "validation"))
    chosen: list[tuple[str, Strength]] = []
    for spec in recipe.methods:
        have = there.get(spec.name, set())
        choice = choices.get(spec.name)
        strength = given.get(spec.name, choice.strength if choice else None)
        if not have:
            continue
        if strength is None and len(have) == 1:
            (strength,) = have
        if strength is None or strength not in have:
            listed = "; ".join(strength_text(one) for one in sorted(have, key=str))
            problem = choice.why if choice and choice.strength is None else "nothing says which strength to judge"
            if strength is not None:
                problem = f"there are no answers at strength {strength_text(strength)}"
            raise OptionError(f"{spec.name}: {problem}. Give --strength {spec.name}=VALUE; there are: {listed}.")
        chosen.append((spec.name, strength))
    return chosen
