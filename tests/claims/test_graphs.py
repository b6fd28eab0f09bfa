"""Every claim's stages run from the first to the last, with tiny models; and its commands are commands there are."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from recipes.claims import rows, stages
from recipes.claims.recipe import SCALES, names, read
from recipes.claims.verdicts import KINDS, outcome
from trimtab.cli.main import build_parser
from trimtab.errors import DataError
from trimtab.evaluation.comparison.catalogued import known_methods
from trimtab.evaluation.comparison.recipe_reader import parse_recipe
from trimtab.methods.catalogue import check_method

MODELS = ("model", "large", "small", "second", "third", "reward_base", "shipped_base", "shipped")
SHORT = ("costs", "match-dpo")
"""Whose graphs run in every test run; the others take longer."""


def _given(name: str, model: Path | str, data: Path | str, guide: Path | str = "") -> dict[str, str]:
    """What nobody but the reader has. In `two-guides` the third is a guide and has its value."""
    claim = read(name)
    used, own = stages.used(claim), claim.scales["tiny"].values
    found = {key: str(model) for key in MODELS if key in used and key not in own}
    found |= {"shipped": str(guide)} if "shipped" in used else {}
    return found | ({"data": str(data)} if "data" in used else {})


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in names()]
)
def test_a_claim_runs_from_end_to_end(
    name: str, data: Path, model: Path, guide: Path, tmp_path: Path, execute: Callable[[list[str]], int]
) -> None:
    claim = read(name)
    planned = stages.plan(claim, "tiny", tmp_path, _given(name, model, data, guide))
    assert stages.run(planned, print, execute=execute) == len(claim.stages)
    assert stages.run(planned, print, execute=execute) == 0, "a finished stage is not run again"
    for test in claim.verdict:
        path = tmp_path / "rows" / f"{test['rows']}.jsonl.gz"
        with contextlib.suppress(DataError):  # of random models: nothing to recover, or no arm of so many nats
            judged = rows.read(tmp_path / "rows" / f"{test['judge']['rows']}.jsonl.gz") if "judge" in test else None
            assert outcome(test, rows.read(path), judged).num >= 1
            continue
        assert test["kind"] == "share" or "nats" in test["of"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", names())
def test_the_commands_of_a_claim_are_commands(name: str, scale: str, tmp_path: Path, repository: Path) -> None:
    """Flags are the parser's, scripts are there, and comparisons are sound, at every scale."""
    claim = read(name)
    used = stages.used(claim)
    given = {key: f"{tmp_path}/{key}" for key in ("data", "models") if key in used}
    if scale == "tiny":
        given |= _given(name, "demo", tmp_path / "data", tmp_path / "guide")
    plan = stages.plan(claim, scale, tmp_path, given)
    for planned in plan.stages:
        assert "$" not in planned.line
        words = list(planned.command)
        if "trimtab.cli.main" in words:
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                build_parser().parse_args(words[words.index("trimtab.cli.main") + 1 :])
        else:
            (script,) = (word for word in words if word.endswith(".py") and "--" not in word and ":" not in word)
            assert Path(script).is_file()
        if planned.comparison is not None:
            source = yaml.safe_load(planned.comparison)
            recipe = parse_recipe(source, tmp_path, known_methods(), check_method)
            assert recipe.baseline.name == "base"
            wanted = {
                test["reward"] for test in claim.verdict if test["rows"] == planned.stage.name and "reward" in test
            }
            assert wanted <= {reward.name for reward in recipe.rewards}


@pytest.mark.parametrize("name", names())
def test_every_arm_and_row_that_a_verdict_reads_is_made(name: str) -> None:
    claim = read(name)
    kept = {stage.name: stage for stage in claim.stages if stage.keeps_rows}
    assert claim.verdict
    for test in claim.verdict:
        assert test["kind"] in KINDS
        stage = kept[test["rows"]]
        assert "judge" not in test or test["judge"]["rows"] in kept
        if stage.compare is not None:
            methods = {one.get("name", one["method"]): one for one in _methods(claim.directory / stage.compare)}
            splits = yaml.safe_load((claim.directory / stage.compare).read_text())["prompts"]
            for arm in (test[key] for key in ("of", "than", "base") if key in test):
                _check_arm(arm, methods, splits)


def _methods(path: Path) -> list[dict[str, object]]:
    return yaml.safe_load(path.read_text())["methods"]  # type: ignore[no-any-return]


def _check_arm(arm: object, methods: dict[str, dict[str, object]], splits: dict[str, object]) -> None:
    if isinstance(arm, str):
        assert arm in methods
        return
    assert isinstance(arm, dict)
    method = methods[arm["method"]]
    if "nats" in arm or arm["strength"] == "best":
        assert "validation" in splits, "a strength is chosen on validation prompts"
    elif arm["method"] != "base":
        assert arm["strength"] in method["strengths"]  # type: ignore[operator]
    else:
        assert arm["strength"] == 0


def test_rows_are_numbered_without_a_gap() -> None:
    assert [read(name).row for name in names()] == [*range(1, len(names()) + 1)]


def test_a_command_that_is_printed_can_be_pasted(tmp_path: Path) -> None:
    plan = stages.plan(read("costs"), "here", tmp_path / "with space", {})
    assert shlex.split(plan.stages[0].line) == list(plan.stages[0].command)
