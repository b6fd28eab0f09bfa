"""`trimtab train reward` and `trimtab train dpo` as a user meets them; what `train arm` shares is tested there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("trl")

from .conftest import Run, Tiny
from .test_train import SMALL

METHODS = ("reward", "dpo")


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"say {number}", "chosen": "aeiou"[number % 5 :] + "a", "rejected": "bcdfg"[number % 4 :] + "b"}
        for number in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def command(method: str, tiny: Tiny, pairs: str, out: Path, *more: str) -> tuple[str, ...]:
    small = SMALL if method == "dpo" else (*SMALL[:2], *SMALL[4:])  # a reward model has no length of prompts
    return ("train", method, "--model", tiny.model, "--data", pairs, "--out", str(out), *small, *more)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_prints_one_json_object_and_its_curve_on_the_other_stream(
    method: str, run: Run, tiny: Tiny, pairs: str, tmp_path: Path
) -> None:
    more = ("--eval-data", pairs, "--logging-steps", "1", "--learning-rate", "0.02", "--epochs", "2", "--json")
    outcome = run(*command(method, tiny, pairs, tmp_path / "out", *more))
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["out"], result["num_pairs"], result["num_eval_pairs"]) == (str(tmp_path / "out"), 12, 12)
    assert 0 <= result["eval_accuracy_low"] <= result["eval_accuracy"] <= result["eval_accuracy_high"] <= 1
    lines = [line for line in outcome.err.splitlines() if line.startswith("step ")]
    assert len(lines) == 6
    assert all(word in lines[0] for word in ("step 1/6", "loss", "accuracy", "margin", "pairs/s", "tokens/s"))
    card = json.loads((tmp_path / "out" / "guide.json").read_text())
    assert card["kind"] == {"reward": "reward", "dpo": "policy"}[method]
    assert (card["hyperparameters"]["learning_rate"], card["data"]["files"]) == (0.02, ["pairs.jsonl"])
    assert "FutureWarning" not in outcome.err


def test_what_reward_writes_scores(run: Run, tiny: Tiny, pairs: str, tmp_path: Path) -> None:
    from trimtab.storage.scorers import load_scorer

    more = ("--learning-rate", "0.02", "--epochs", "4", "--eval-share", "0")
    assert run(*command("reward", tiny, pairs, tmp_path / "r", *more)).code == 0
    better, worse = load_scorer(str(tmp_path / "r"))(["say 3", "say 3"], ["aeioua", "bcdfgb"])
    assert better > worse


def test_what_dpo_writes_steers(run: Run, tiny: Tiny, pairs: str, tmp_path: Path) -> None:
    more = ("--learning-rate", "0.05", "--epochs", "4", "--eval-share", "0")
    assert run(*command("dpo", tiny, pairs, tmp_path / "d", *more)).code == 0
    asked = ("generate", "--model", tiny.model, "--prompt", "say 3", "--temperature", "0", "--max-new-tokens", "8")
    plain, steered = run(*asked), run(*asked, "--guide", f"dpo={tmp_path / 'd'}:1")
    assert (plain.code, steered.code) == (0, 0), steered.err
    assert plain.out != steered.out


@pytest.mark.parametrize("method", METHODS)
def test_an_output_in_the_way_is_refused_unless_it_is_to_be_replaced(
    method: str, run: Run, tiny: Tiny, pairs: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    outcome = run(*command(method, tiny, pairs, out))
    assert (outcome.code, outcome.out) == (2, "")
    assert "--overwrite" in outcome.err
    assert run(*command(method, tiny, pairs, out, "--overwrite", "--eval-share", "0")).code == 0
    assert not (out / "old.txt").exists()


REFUSED = {
    "an option of another method": (("reward", "--beta", "1"), "'--beta'"),
    "a centre below 0": (("reward", "--center-rewards", "-1"), "give a finite number"),
    "a beta of 0": (("dpo", "--beta", "0"), "give a finite number above 0"),
    "no room for a response": (
        ("dpo", "--max-length", "8", "--max-prompt-length", "8"),
        "leaves no room for a response",
    ),
    "a missing file": (("dpo",), "there is no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_way_out(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (method, *more), problem = REFUSED[name]
    outcome = run("train", method, "--model", "m", "--data", "missing.jsonl", "--out", "o", *more)
    assert (outcome.code, outcome.out) == (2, "")
    assert problem in outcome.err
    assert not list(tmp_path.iterdir()), "nothing is written"
