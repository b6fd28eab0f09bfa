"""`trimtab train parm` and `--preference` as a user meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl")

from trimtab.cli.options import parse_preference
from trimtab.errors import OptionError

from .conftest import Run, Tiny

VOWELS, CONSONANTS = "aeiou", "bcdfg"


def write_pairs(path: Path, chosen: str, rejected: str, count: int = 12) -> str:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {number}"}],
            "chosen": [{"role": "assistant", "content": chosen[number % 5 :] + chosen[: number % 5]}],
            "rejected": [{"role": "assistant", "content": rejected[number % 4 :] + rejected[: number % 4]}],
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Two objectives that want the opposite of each other."""
    return {
        "vowels": write_pairs(tmp_path / "vowels.jsonl", VOWELS, CONSONANTS),
        "consonants": write_pairs(tmp_path / "consonants.jsonl", CONSONANTS, VOWELS, count=8),
    }


SMALL = ("--max-length", "64", "--max-prompt-length", "40", "--batch-size", "2", "--gradient-accumulation", "2")


def command(tiny: Tiny, data: dict[str, str], out: Path, *more: str) -> tuple[str, ...]:
    named = [flag for name, path in data.items() for flag in ("--data", f"{name}={path}")]
    return ("train", "parm", "--model", tiny.model, *named, "--out", str(out), *SMALL, *more)


def test_a_run_prints_one_json_object_and_each_objectives_accuracies(
    run: Run, tiny: Tiny, data: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "guide"
    held = [flag for name, path in data.items() for flag in ("--eval-data", f"{name}={path}")]
    more = ("--beta", "0.2", "--beta", "vowels=0.5", "--logging-steps", "1", "--epochs", "1", "--json")
    outcome = run(*command(tiny, data, out, *held, *more))
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["out"], result["num_pairs"], result["num_eval_pairs"]) == (str(out), 20, 20)
    assert set(result["metrics"]["objectives"]["vowels"]["accuracy_at"]) == {"vowels", "consonants", "middle"}
    lines = outcome.err.splitlines()
    assert len([line for line in lines if line.startswith("step ")]) == 3
    assert any(line.startswith("consonants: ") and "at middle" in line for line in lines)
    card = json.loads((out / "guide.json").read_text())
    assert (card["hyperparameters"]["beta"], card["hyperparameters"]["betas"]) == (0.2, {"vowels": 0.5})
    assert card["data"]["files"] == ["vowels.jsonl", "consonants.jsonl"]


def test_the_vector_steers(run: Run, tiny: Tiny, data: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "guide"
    more = ("--learning-rate", "0.03", "--beta", "0.1", "--epochs", "4", "--eval-share", "0")
    assert run(*command(tiny, data, out, *more)).code == 0
    asked = ("generate", "--model", tiny.model, "--prompt", "say 3", "--temperature", "0", "--max-new-tokens", "5")
    texts = [
        run(*asked, "--guide", f"both={out}:8", "--preference", f"both={vector}").out.strip()
        for vector in ("1,0", "0,1")
    ]
    assert len({*texts, run(*asked).out.strip()}) == 3, "both differ from the base, and from each other"
    other = run(*asked, "--guide", f"both={out}", "--preference", "both=0.7,0.7")
    assert other.code == 2
    assert "adds up to 1.4. Give 2 numbers of at least 0 that add up to 1, in the order vowels, consonants" in other.err
    without = run(*asked, "--guide", f"both={out}")
    assert without.code == 2
    assert "weighs 2 objectives (vowels, consonants), so it needs a preference" in without.err


def test_answers_at_another_vector_do_not_continue_a_file(
    run: Run, tiny: Tiny, data: dict[str, str], tmp_path: Path
) -> None:
    out, answers = tmp_path / "guide", str(tmp_path / "answers.jsonl")
    assert run(*command(tiny, data, out, "--epochs", "0.1", "--eval-share", "0")).code == 0
    asked = ("generate", "--model", tiny.model, "--prompt", "say 3", "--max-new-tokens", "3", "--out", answers)
    guided = (*asked, "--guide", f"both={out}")
    assert run(*guided, "--preference", "both=0.7,0.3").code == 0
    refused = run(*guided, "--preference", "both=0.3,0.7", "--resume")
    assert refused.code == 2
    assert "guides" in refused.err
    assert run(*guided, "--preference", "both=0.7,0.3", "--resume").code == 0


REFUSED = {
    "data without a name": (("--data", "pairs.jsonl", "--data", "b=x"), "--data pairs.jsonl names no objective"),
    "one objective": (("--data", "a=x.jsonl"), "one objective (a); a preference needs at least two"),
    "a beta of no objective": (("--data", "a=x", "--data", "b=y", "--beta", "c=1"), "Unknown objective 'c'"),
    "a beta of 0": (("--data", "a=x", "--data", "b=y", "--beta", "a=0"), "give a finite number above 0"),
    "a nameless beta": (("--data", "a=x", "--data", "b=y", "--beta", "=1"), "give NAME=X or X"),
    "all weights": (("--data", "a=x", "--data", "b=y", "--full"), "--full"),
    "a missing file": (("--data", "a=missing.jsonl", "--data", "b=y"), "there is no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags, problem = REFUSED[name]
    outcome = run("train", "parm", "--model", "m", "--out", "o", *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert problem in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["both", "both=", "=1,0", "both=1;0", "both=a,b", "both=1,"])
def test_what_is_no_preference_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"is not a preference\. Accepted: NAME=P,P"):
        parse_preference(text)


def test_a_preference_belongs_to_a_guide(run: Run, tiny: Tiny) -> None:
    asked = ("generate", "--model", tiny.model, "--prompt", "hi", "--guide", f"one={tiny.lora}")
    unknown = run(*asked, "--preference", "two=1,0")
    assert unknown.code == 2
    assert "Unknown guide 'two'" in unknown.err
    twice = run(*asked, "--preference", "one=1,0", "--preference", "one=0,1")
    assert "names 'one' twice" in twice.err
    plain = run(*asked, "--preference", "one=1,0")
    assert plain.code == 2
    assert "has one objective, so it takes no preference" in plain.err


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    run: Run, tiny: Tiny, data: dict[str, str], tmp_path: Path, repository: Path
) -> None:
    more = ("--eval-share", "0", "--epochs", "2", "--learning-rate", "0.01", "--gradient-accumulation", "1")
    assert run(*command(tiny, data, tmp_path / "one", *more, "--batch-size", "4")).code == 0
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
    argv = (*launch, str(repository / "recipes" / "two_processes_cpu.yaml"), "-m", "trimtab.cli.main")
    done = subprocess.run(
        [*argv, *command(tiny, data, tmp_path / "two", *more, "--batch-size", "2")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "parm.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
