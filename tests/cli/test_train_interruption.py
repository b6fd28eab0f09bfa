"""Ctrl-C in a training, as a user meets it: a real signal to a process of its own, and the command that it says."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("torchrl")

import safetensors.torch

from trimtab.cli.train import interruption as train_interruption
from trimtab.training.run import checkpoints

from .conftest import Run, Tiny, spawn


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with pairs.jsonl and prompts.jsonl."""
    rows = [
        {"prompt": f"say {number}", "chosen": "aeiou"[number % 5 :] + "a", "rejected": "bcdfg"[number % 4 :] + "b"}
        for number in range(20)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prompts = [{"prompt": row["prompt"]} for row in rows[:5]]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    return tmp_path


def arm(tiny: Tiny, data: Path, out: str) -> list[str]:
    small = ("--max-length", "64", "--batch-size", "2", "--gradient-accumulation", "2", "--lora-dropout", "0.1")
    told = ["train", "arm", "--model", tiny.model, "--data", str(data / "pairs.jsonl"), "--out", str(data / out)]
    return [*told, *small, "--logging-steps", "1", "--eval-share", "0", "--epochs", "2", "--save-steps", "0"]


def agent(tiny: Tiny, data: Path, out: str) -> list[str]:
    small = ("--rollout-batch", "2", "--max-new-tokens", "4", "--hidden-dim", "8", "--batch-size", "16", "--raw")
    told = ["train", "agent", "--model", tiny.model, "--prompts", str(data / "prompts.jsonl"), "--out", str(data / out)]
    told += ["--reward", f"length={__name__}:length", "--episodes", "20", "--save-episodes", "0"]
    return [*told, *small, "--warmup-batches", "1", "--updates-per-episode", "1", "--logging-episodes", "2"]


def length(prompts: Sequence[object], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


TRAININGS = {"arm": (arm, "step"), "agent": (agent, "episode")}


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
OURS = ("-m", "trimtab.cli.main")


def interrupt(
    argv: Sequence[str], line: str, numbers: Sequence[int] = (signal.SIGINT,), program: Sequence[str] = OURS
) -> tuple[int, str]:
    """Run a command, send its process group signals once it has written a line that begins so, as a terminal does.

    Its exit code and standard error.
    """
    process = subprocess.Popen(
        [sys.executable, *program, *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    seen: list[str] = []
    for text in process.stderr:
        seen.append(text)
        if text.startswith(line):
            break
    for number in numbers:
        os.killpg(process.pid, number)
    rest = process.stderr.read()
    return process.wait(), "".join(seen) + rest


def same_weights(one: Path, other: Path) -> bool:
    (left,), (right,) = one.glob("*.safetensors"), other.glob("*.safetensors")
    ours, theirs = safetensors.torch.load_file(left), safetensors.torch.load_file(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def losses(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    clock = ("share_", "episodes_", "pairs_per", "tokens_per")
    return [{key: value for key, value in line.items() if not key.startswith(clock)} for line in lines]


SLOW = pytest.mark.slow
CUTS = [("arm", 4), ("agent", 8), *(pytest.param(*cut, marks=SLOW) for cut in (("arm", 1), ("arm", 7), ("agent", 2)))]


@pytest.mark.parametrize(("method", "at"), CUTS)
def test_ctrl_c_saves_and_says_the_command_that_ends_in_the_same_losses(
    method: str, at: int, run: Run, tiny: Tiny, data: Path
) -> None:
    command, what = TRAININGS[method]
    code, err = interrupt(command(tiny, data, "out"), f"{what} {at:>2}/")
    assert code == 130, err
    assert "Traceback" not in err
    assert "a checkpoint is saved and the training ends; once more ends it at once" in err
    *_, where, told = err.splitlines()
    step = checkpoints.step_of(checkpoints.last_good(data / "out.partial"))
    assert at <= step
    assert where.startswith(f"The training was ended after {what} {step} of ")
    assert where.endswith(". Go on with:")
    assert not (data / "out").exists()
    python, *words = shlex.split(told)
    assert python == "python"
    assert words == ["-m", "trimtab.cli.main", *command(tiny, data, "out"), "--resume"]
    assert run(*words[2:]).code == 0
    assert run(*command(tiny, data, "whole")).code == 0
    assert same_weights(data / "out", data / "whole")
    assert losses(data / "out") == losses(data / "whole")


@pytest.mark.slow
def test_all_processes_of_a_group_end_at_the_same_step(run: Run, tiny: Tiny, data: Path, repository: Path) -> None:
    """The launcher hands the signal on, and ends with an error of its own."""
    config = repository / "recipes" / "two_processes_cpu.yaml"
    launch = ("-m", "accelerate.commands.launch", "--config_file", str(config), *OURS)
    longer = ("--epochs", "8")
    code, err = interrupt([*arm(tiny, data, "out"), *longer], "step  2/20", program=launch)
    assert code != 0
    assert err.count("The training was ended after step ") == 1, "one process talks"
    assert "accelerate launch ... -m trimtab.cli.main train arm" in err
    for more in (("out", "--resume"), ("whole",)):
        command = [sys.executable, *launch, *arm(tiny, data, more[0]), *longer, *more[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
    assert same_weights(data / "out", data / "whole")
    assert losses(data / "out") == losses(data / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_workers_end_with_the_training(times: int, run: Run, tiny: Tiny, data: Path) -> None:
    pytest.importorskip("ray")
    workers = ("--workers", "2", "--worker-cpus", "0.5")
    code, err = interrupt([*agent(tiny, data, "out"), *workers], "episode  4/", [signal.SIGINT] * times)
    assert code == 130, err
    assert "Traceback" not in err
    assert not [name for name in _running() if str(data / "out") in name]
    if times == 2:
        return
    assert run(*agent(tiny, data, "out"), *workers, "--resume").code == 0
    assert run(*agent(tiny, data, "whole"), *workers).code == 0
    assert same_weights(data / "out", data / "whole")
    assert losses(data / "out") == losses(data / "whole")


def _running() -> list[str]:
    """The command lines of all processes."""
    paths = Path("/proc").glob("[0-9]*/cmdline")
    return [path.read_bytes().replace(b"\0", b" ").decode(errors="replace") for path in paths if path.exists()]


@pytest.mark.parametrize("method", TRAININGS)
def test_a_second_signal_ends_at_once(method: str, tiny: Tiny, data: Path) -> None:
    command, what = TRAININGS[method]
    code, err = interrupt(command(tiny, data, "out"), f"{what} ", [signal.SIGTERM, signal.SIGINT, signal.SIGINT])
    assert code == 130, err
    assert "Traceback" not in err
    assert not (data / "out").exists()


def test_before_the_first_step_there_is_nothing_to_save(tiny: Tiny, data: Path) -> None:
    code, err = interrupt(arm(tiny, data, "out"), "20 pairs", [signal.SIGTERM])
    assert (code, "Traceback" in err) == (130, False), err
    assert "interrupted" in err
    assert not (data / "out").exists()


def test_the_first_lines_say_what_is_done_and_how_long_it_takes(tiny: Tiny, data: Path) -> None:
    outcome = spawn(arm(tiny, data, "out"))
    assert outcome.code == 0, outcome.err
    lines = [line.removeprefix("trimtab: ") for line in outcome.err.splitlines()]
    assert lines[0] == f"reading {data / 'pairs.jsonl'}"
    assert "20 pairs to train on" in lines[1:3]
    assert lines[3] == f"loading {tiny.model}"
    assert "training: 10 steps of 4 pairs" in lines
    (estimate,) = (at for at, line in enumerate(lines) if line.startswith("the first step took"))
    assert "at this pace the 9 that are left take about" in lines[estimate]
    assert lines[estimate - 1] == "training: 10 steps of 4 pairs"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["train", "arm", "--overwrite", "--out", "a b"], "train arm --out 'a b' --resume"),
        (["-v", "train", "arm", "--resume", "--out", "o"], "-v train arm --out o --resume"),
    ],
)
def test_the_command_goes_on_and_does_not_start_anew(
    given: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/trimtab"])
    assert train_interruption.resume_command(given) == f"trimtab {told}"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train_interruption.resume_command(given) == f"accelerate launch ... -m trimtab.cli.main {told}"


RESUMED = {
    "a setting": (["--beta", "0.5"], "--beta is 0.5 here and 0.05 in the run"),
    "a length and what follows it": (["--max-length", "60"], ": --max-length is 60 here and 64 in the run."),
    "a switch": (["--full"], "--full is True here and False in the run"),
    "a list": (["--lora-targets", "q_proj"], "--lora-targets is q_proj here and all-linear in the run"),
    "a seed and what it decides": (["--seed", "3"], ": --seed is 3 here and 0 in the run."),
    "the form": (["--form", "shift"], ": --form is shift here and product in the run."),
    "the model": (["--model", "{separate}"], ": --model is {separate} here and {model} in the run."),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resume_with_another_setting_names_its_flag_with_both_values(
    name: str, run: Run, tiny: Tiny, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimtab.training.run import run as run_module

    names = {"model": tiny.model, "separate": tiny.separate}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_train", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*arm(tiny, data, "out")).code == 130
    more, problem = RESUMED[name]
    outcome = run(*arm(tiny, data, "out"), "--resume", *(word.format(**names) for word in more))
    assert outcome.code == 2
    assert problem.format(**names) in outcome.err
    assert "hyperparameters" not in outcome.err
    for other in ("--save-minutes", "--save-steps"):
        outcome = run(*arm(tiny, data, "out"), "--resume", other, "7", *more[:0], "--beta", "0.5")
        assert ": --beta is 0.5 here and 0.05 in the run." in outcome.err


REFUSED = {
    "arm": (["--max-length", "8", "--max-prompt-length", "9"], "--max-prompt-length 9 leaves no room"),
    "dpo": (["--max-length", "1"], "--max-length is 1"),
    "parm": (["--lora-rank", "1"], "--lora-rank is 1"),
    "reward": (["--eval-steps", "2", "--eval-share", "0"], "--eval-steps is 2, and no pairs are held out"),
}


@pytest.mark.parametrize("method", REFUSED)
def test_an_error_names_flags(method: str, run: Run, data: Path) -> None:
    more, problem = REFUSED[method]
    pairs = str(data / "pairs.jsonl")
    sources = ("--data", f"a={pairs}", "--data", f"b={pairs}") if method == "parm" else ("--data", pairs)
    outcome = run("train", method, "--model", "m", *sources, "--out", str(data / "o"), *more)
    assert (outcome.code, outcome.out) == (2, "")
    assert problem in outcome.err
    assert "_" not in outcome.err.partition("error: ")[2]


@pytest.mark.parametrize(
    ("method", "more", "problem"),
    [
        (
            "rl",
            ["--num-generations", "5", "--gradient-accumulation", "2"],
            "--batch-size × --gradient-accumulation = 32",
        ),
        ("agent", ["--buffer-size", "9"], "--warmup-batches 1 × --batch-size 1024"),
        ("agent", ["--worker-cpus", "2"], "of no use without --workers"),
    ],
)
def test_an_error_of_a_training_on_prompts_names_flags(
    method: str, more: list[str], problem: str, run: Run, data: Path
) -> None:
    told = ("--prompts", str(data / "prompts.jsonl"), "--reward", "a=sentiment", "--out", str(data / "o"))
    outcome = run("train", method, "--model", "m", *told, *more)
    assert (outcome.code, outcome.out) == (2, "")
    assert problem in outcome.err


@pytest.mark.parametrize("form", ["product", "shift"])
def test_the_form_goes_into_the_cards(form: str, run: Run, tiny: Tiny, data: Path) -> None:
    more = ("--epochs", "0.2") + (("--form", form) if form == "shift" else ())
    assert run(*arm(tiny, data, "out"), *more).code == 0
    card = json.loads((data / "out" / "guide.json").read_text())
    assert (card["guide_form"], card["form"], card["hyperparameters"]["form"]) == (form, "lora", form)
    assert f"It steers as a {form}" in (data / "out" / "README.md").read_text()
