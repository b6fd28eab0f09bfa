"""The demo as a user runs it: the real model, the guide that ships, all 64 prompts. About a minute on two cores."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.storage.directories import DEMO_PACKAGE

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec(DEMO_PACKAGE) is None, reason=f"needs the package {DEMO_PACKAGE}, the demo model"
    ),
]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    directory = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "trimtab.cli.main", "demo", "--json"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    summary["report"] = directory / summary["report"]
    return summary  # type: ignore[no-any-return]


def _of(summary: dict[str, list[dict[str, float]]], form: str) -> list[dict[str, float]]:
    return [row for row in summary["strengths"] if row["form"] == form]


def test_reward_rises_with_the_strength(summary: dict[str, list[dict[str, float]]]) -> None:
    shift, product = _of(summary, "shift"), _of(summary, "product")
    assert [row["weight"] for row in shift] == [-1, 0, 0.5, 1, 2]
    assert [row["weight"] for row in product] == [0.5, 1, 2]
    for rows in (shift, [shift[1], *product]):
        rewards = [row["reward"] for row in rows]
        assert rewards == sorted(rewards)
    # Not by chance: the intervals of the base and of the strengths 1 and −1 do not touch.
    assert shift[3]["reward_low"] > shift[1]["reward_high"]
    assert shift[0]["reward_high"] < shift[1]["reward_low"]
    assert product[1]["reward_low"] > shift[1]["reward_high"]


def test_kl_is_paid_for_it(summary: dict[str, list[dict[str, float]]]) -> None:
    shift, product = ([row["kl"] for row in _of(summary, form)] for form in ("shift", "product"))
    assert shift[1] == 0
    assert shift[1:] == sorted(set(shift[1:]))
    assert shift[0] > 0
    # At strengths 0.5 and 1 the product pays for its base's share as well.
    assert product[0] > shift[2]
    assert product[1] > shift[3]


def test_the_report_names_model_judge_and_size(summary: dict[str, Path]) -> None:
    page = summary["report"].read_text(encoding="utf-8")
    for wanted in ("SmolLM2-135M-Instruct", "64 of our own", "labelled the pairs", "VADER", "held-out pairs"):
        assert wanted in page
    answers = [json.loads(line) for line in summary["report"].with_name("answers.jsonl").read_text().splitlines()]
    assert len(answers) == (1 + 8) * 64
    shift = [row for row in answers if row["method"] == "shift"]
    by_strength = {weight: [row["text"] for row in shift if row["strength"] == weight] for weight in (0, 1)}
    assert sum(one != other for one, other in zip(by_strength[0], by_strength[1], strict=True)) > 60


def test_the_guide_that_ships_is_small() -> None:
    import trimtab

    directory = Path(trimtab.__file__).parent / "shipped" / "sentiment"
    assert sum(path.stat().st_size for path in directory.iterdir()) < 8 * 2**20
    card = json.loads((directory / "guide.json").read_text(encoding="utf-8"))
    assert card["form"] == "lora"
    assert card["metrics"]["num_eval_pairs"] > 0
