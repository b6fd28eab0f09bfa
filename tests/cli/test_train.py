"""`trimtab train arm` as a user meets it: streams, exit codes, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from .conftest import Run, Tiny, spawn


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {number}"}],
            "chosen": [{"role": "assistant", "content": "aeiou"[number % 5 :] + "a" * (number % 3)}],
            "rejected": [{"role": "assistant", "content": "bcdfg"[number % 4 :] + "b" * (number % 3)}],
        }
        for number in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


SMALL = ("--max-length", "64", "--max-prompt-length", "40", "--batch-size", "2", "--gradient-accumulation", "2")
"""Three steps an epoch."""


def command(tiny: Tiny, pairs: str, out: Path, *more: str) -> tuple[str, ...]:
    return ("train", "arm", "--model", tiny.model, "--data", pairs, "--out", str(out), *SMALL, *more)


def test_a_run_prints_one_json_object_and_its_curve_on_the_other_stream(
    run: Run, tiny: Tiny, pairs: str, tmp_path: Path
) -> None:
    out = tmp_path / "guide"
    more = ("--eval-data", pairs, "--logging-steps", "1", "--learning-rate", "0.02", "--epochs", "2", "--json")
    outcome = run(*command(tiny, pairs, out, *more))
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["out"], result["num_pairs"], result["num_eval_pairs"]) == (str(out), 12, 12)
    assert 0 <= result["eval_accuracy_low"] <= result["eval_accuracy"] <= result["eval_accuracy_high"] <= 1
    assert result["metrics"]["num_steps"] == 6
    lines = [line for line in outcome.err.splitlines() if line.startswith("step ")]
    assert len(lines) == 6
    assert outcome.err.count("step 1") == 1, "a line of the curve is shown once"
    assert all(word in lines[0] for word in ("step 1/6", "loss", "accuracy", "margin", "pairs/s", "tokens/s"))
    assert any(line.startswith("evaluation  loss") for line in outcome.err.splitlines())
    assert "on 12 held-out pairs" in outcome.err
    card = json.loads((out / "guide.json").read_text())
    assert (card["hyperparameters"]["learning_rate"], card["data"]["files"]) == (0.02, ["pairs.jsonl"])


def test_what_a_library_prints_is_not_among_the_results(
    run: Run, tiny: Tiny, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed logs on standard output as soon as it is imported."""
    from trimtab.training.arm import train as arm

    train_arm = arm.train_arm

    def chatty(*args: Any, **options: Any) -> Any:
        print("Setting ds_accelerator")
        return train_arm(*args, **options)

    monkeypatch.setattr(arm, "train_arm", chatty)
    outcome = run(*command(tiny, pairs, tmp_path / "guide", "--eval-share", "0", "--json"))
    assert json.loads(outcome.out)["num_pairs"] == 12
    assert "Setting ds_accelerator" in outcome.err


def test_without_json_nothing_goes_to_standard_output(run: Run, tiny: Tiny, pairs: str, tmp_path: Path) -> None:
    outcome = run(*command(tiny, pairs, tmp_path / "guide", "--eval-share", "0"))
    assert (outcome.code, outcome.out) == (0, "")
    assert "none were held out" in outcome.err


def test_the_guide_steers(run: Run, tiny: Tiny, pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "guide"
    assert run(*command(tiny, pairs, out, "--learning-rate", "0.05", "--epochs", "4", "--eval-share", "0")).code == 0
    asked = ("generate", "--model", tiny.model, "--prompt", "say 3", "--temperature", "0", "--max-new-tokens", "8")
    plain = run(*asked)
    steered = run(*asked, "--guide", f"vowels={out}:5")
    assert (plain.code, steered.code) == (0, 0)
    assert plain.out != steered.out


def test_a_bad_line_stops_the_run_unless_told_otherwise(run: Run, tiny: Tiny, pairs: str, tmp_path: Path) -> None:
    path = Path(pairs)
    path.write_text(path.read_text() + "\n{cut\n")
    outcome = run(*command(tiny, pairs, tmp_path / "guide"))
    assert (outcome.code, outcome.out) == (2, "")
    assert f"{pairs}, line 13: the line is empty" in outcome.err
    assert "--skip-bad-lines" in outcome.err
    assert not (tmp_path / "guide").exists()
    outcome = run(*command(tiny, pairs, tmp_path / "guide", "--skip-bad-lines", "--eval-share", "0", "--json"))
    assert outcome.code == 0
    assert json.loads(outcome.out)["metrics"]["num_skipped"] == 2


REFUSED = {
    "no method": (("train",), "required: METHOD"),
    "an unknown method": (("train", "arms"), "invalid choice: 'arms'"),
    "an unknown option": (
        ("train", "arm", "--model", "m", "--data", "d", "--out", "o", "--learning-rat", "1"),
        "Did you mean '--learning-rate'?",
    ),
    "no data": (("train", "arm", "--model", "m", "--out", "o"), "required: --data"),
    "a learning rate of 0": (
        ("train", "arm", "--model", "m", "--data", "d", "--out", "o", "--learning-rate", "0"),
        "give a finite number above 0",
    ),
    "resume and overwrite": (
        ("train", "arm", "--model", "m", "--data", "d", "--out", "o", "--resume", "--overwrite"),
        "not allowed with argument",
    ),
    "a missing file": (
        ("train", "arm", "--model", "m", "--data", "missing.jsonl", "--out", "o"),
        "there is no such file",
    ),
    "an unknown format": (
        ("train", "arm", "--model", "m", "--data", "missing.jsonl", "--out", "o", "--format", "hhh"),
        "Did you mean 'hh'?",
    ),
    "no room for a response": (
        (
            *("train", "arm", "--model", "m", "--data", "d", "--out", "o"),
            *("--max-length", "8", "--max-prompt-length", "8"),
        ),
        "leaves no room for a response",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_way_out(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, problem = REFUSED[name]
    outcome = run(*argv)
    assert (outcome.code, outcome.out) == (2, "")
    assert problem in outcome.err
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_an_output_in_the_way_is_refused(run: Run, tiny: Tiny, pairs: str, tmp_path: Path) -> None:
    (tmp_path / "guide").mkdir()
    outcome = run(*command(tiny, pairs, tmp_path / "guide"))
    assert outcome.code == 2
    assert "--overwrite" in outcome.err


def test_only_the_first_process_of_a_group_talks(
    run: Run, tiny: Tiny, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    outcome = run(*command(tiny, pairs, tmp_path / "guide", "--eval-share", "0", "--json"))
    assert (outcome.code, outcome.out) == (0, "")
    assert "step " not in outcome.err


def test_in_a_process_of_its_own_standard_output_holds_the_json_alone(tiny: Tiny, pairs: str, tmp_path: Path) -> None:
    outcome = spawn(command(tiny, pairs, tmp_path / "guide", "--eval-share", "0", "--json"))
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["num_pairs"] == 12
