"""A whole run: what is learnt, what is written, what is refused, and going on after the worst."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import safetensors.torch

from trimtab.errors import CheckpointError, DataError, NotFiniteError, OptionError, OutputExistsError
from trimtab.storage.loading import load_guide, load_model
from trimtab.training.arm.train import ArmSettings, TrainProgress, train_arm
from trimtab.training.pairs.data import PairData, fingerprint
from trimtab.training.run import checkpoints
from trimtab.training.run import run as run_module

from .conftest import vowel_pairs

PAIRS, HELD = vowel_pairs(48), vowel_pairs(24, seed=1)
SETTINGS = ArmSettings(
    beta=0.5,
    learning_rate=0.01,
    batch_size=4,
    gradient_accumulation=2,
    epochs=2,
    max_length=64,
    max_prompt_length=32,
    logging_steps=2,
    save_steps=4,
    lora_dropout=0.1,
)
"""Twelve steps of eight pairs, checkpoints after 4, 8 and 12; the dropout makes the random state matter."""


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(directory / "adapter_model.safetensors"))


def curve(directory: Path) -> list[tuple[Any, ...]]:
    """The lines of a curve without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [tuple(sorted((key, value) for key, value in line.items() if not key.endswith("_per_s"))) for line in lines]


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide of a run from its beginning to its end."""
    out = tmp_path_factory.mktemp("guides") / "vowels"
    train_arm(tiny, PairData(tuple(PAIRS), ("pairs.jsonl",)), eval_pairs=HELD, out=out, settings=SETTINGS)
    return out


def test_the_guide_prefers_what_it_was_shown(finished: Path) -> None:
    metrics = json.loads((finished / "guide.json").read_text())["metrics"]
    assert metrics["num_eval_pairs"] == len(HELD)
    assert metrics["eval_accuracy"] >= 0.9
    assert metrics["eval_accuracy_low"] < metrics["eval_accuracy"] <= metrics["eval_accuracy_high"]
    assert metrics["train_loss"] < 0.4


def test_guide_json_says_what_it_is_and_where_it_comes_from(finished: Path, tiny: str) -> None:
    card, base = json.loads((finished / "guide.json").read_text()), load_model(tiny)
    assert (card["format"], card["kind"], card["form"]) == (1, "arm", "lora")
    assert card["base"] == base.describe()
    assert base.tokenizer is not None
    assert card["vocabulary"] == {"fingerprint": base.tokenizer.fingerprint, "size": len(base.tokenizer.tokens)}
    assert card["data"]["fingerprint"] == fingerprint(PAIRS)
    assert card["data"]["eval_fingerprint"] == fingerprint(HELD)
    assert (card["data"]["files"], card["data"]["num_pairs"]) == (["pairs.jsonl"], len(PAIRS))
    assert card["hyperparameters"]["beta"] == SETTINGS.beta
    assert "Accuracy on 24 pairs" in (finished / "README.md").read_text()


def test_a_guide_is_whole_and_nothing_is_left_beside_it(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "guide.json",
        "metrics.jsonl",
    ]
    assert [path.name for path in finished.parent.iterdir()] == ["vowels"]


def test_the_curve_has_every_window_and_the_evaluation(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12, 12]
    assert all({"loss", "accuracy", "margin", "learning_rate"} <= line.keys() for line in lines[:-1])
    assert {line["num_pairs"] for line in lines[:-1]} == {16}
    assert {"eval_loss", "eval_accuracy", "eval_margin"} <= lines[-1].keys()


def test_peft_loads_the_adapter_and_gives_the_measured_accuracy(finished: Path, tiny: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = load_model(tiny)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(finished)).eval()
    assert base.tokenizer is not None

    def reward(pair: Any, response: str) -> float:
        prompt = base.tokenizer.encode_chat(pair.prompt)
        answer = [*base.tokenizer.hf(response, add_special_tokens=False)["input_ids"], 3]
        with torch.no_grad():
            logprobs = adapted(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        return float(sum(logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(answer)))

    accuracy = sum(reward(pair, pair.chosen) > reward(pair, pair.rejected) for pair in HELD) / len(HELD)
    metrics = json.loads((finished / "guide.json").read_text())["metrics"]
    assert accuracy == metrics["eval_accuracy"]
    assert adapted.peft_config["default"].base_model_name_or_path == tiny

    guided = [[reward(pair, answer) for answer in (pair.chosen, pair.rejected)] for pair in HELD]
    with adapted.disable_adapter():
        alone = [[reward(pair, answer) for answer in (pair.chosen, pair.rejected)] for pair in HELD]
    gaps = [(g[0] - a[0]) - (g[1] - a[1]) for g, a in zip(guided, alone, strict=True)]
    assert metrics["eval_shift_accuracy"] == sum(gap > 0 for gap in gaps) / len(HELD)
    assert metrics["eval_shift_accuracy_low"] < metrics["eval_shift_accuracy"] <= metrics["eval_shift_accuracy_high"]
    assert f"less the base's, {metrics['eval_shift_accuracy']:.3f}" in (finished / "README.md").read_text()


def test_our_loader_takes_the_guide_on_its_base(finished: Path, tiny: str) -> None:
    guide = load_guide(finished, model=load_model(tiny))
    assert guide.model is not None
    session = guide.model.open()
    session.admit([[1, 40, 41]])
    assert not torch.allclose(session.logprobs(), _base_logprobs(tiny))


def _base_logprobs(tiny: str) -> torch.Tensor:
    session = load_model(tiny).open()
    session.admit([[1, 40, 41]])
    return session.logprobs()


def test_the_same_seed_gives_the_same_guide_and_another_does_not(finished: Path, tiny: str, tmp_path: Path) -> None:
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "again", settings=SETTINGS)
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "other", settings=dataclasses.replace(SETTINGS, seed=1))
    assert _same(weights(finished), weights(tmp_path / "again"))
    assert not _same(weights(finished), weights(tmp_path / "other"))


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


SHORT = dataclasses.replace(SETTINGS, epochs=0.5, save_steps=0, lora_dropout=0.0)


def test_all_weights_with_full_in_a_compact_dtype(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, full=True, save_dtype="bfloat16")
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "full", settings=settings)
    assert json.loads((tmp_path / "full" / "guide.json").read_text())["form"] == "full"
    tensors = safetensors.torch.load_file(tmp_path / "full" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    guide = load_guide(tmp_path / "full")
    assert guide.model is not None
    assert guide.model.tokenizer is not None
    assert guide.model.tokenizer.fingerprint == load_model(tiny).tokenizer.fingerprint  # type: ignore[union-attr]


def test_prompts_are_held_out_where_no_evaluation_pairs_are_given(tiny: str, tmp_path: Path) -> None:
    result = train_arm(tiny, PAIRS, out=tmp_path / "g", settings=dataclasses.replace(SHORT, eval_share=0.25))
    assert (result.num_pairs, result.num_eval_pairs) == (36, 12)
    assert result.eval_accuracy is not None


def test_a_guide_that_learnt_nothing_has_no_sign(tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One step alone is the first of the warm-up, at a rate of 0."""
    settings = dataclasses.replace(SHORT, epochs=0.1)
    with caplog.at_level("WARNING"):
        train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "g", settings=settings)
    metrics = json.loads((tmp_path / "g" / "guide.json").read_text())["metrics"]
    assert metrics["num_steps"] == 1
    assert "eval_shift_accuracy" not in metrics
    assert "training changed nothing" in caplog.text
    assert "the sign may be turned" not in caplog.text


def test_without_evaluation_nothing_is_claimed(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, eval_share=0, max_pairs=8)
    result = train_arm(tiny, PAIRS, out=tmp_path / "g", settings=settings)
    assert (result.num_pairs, result.num_eval_pairs, result.eval_accuracy) == (8, 0, None)
    assert "eval_accuracy" not in json.loads((tmp_path / "g" / "guide.json").read_text())["metrics"]


def test_progress_counts_every_step_and_carries_the_curve(tiny: str, tmp_path: Path) -> None:
    heard: list[TrainProgress] = []
    settings = dataclasses.replace(SHORT, eval_steps=2, logging_steps=1)
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "g", settings=settings, progress=heard.append)
    assert [(at.step, at.num_steps) for at in heard if not at.metrics] == [(1, 3), (2, 3), (3, 3)]
    assert [at.step for at in heard if "loss" in at.metrics] == [1, 2, 3]
    assert [at.step for at in heard if "eval_loss" in at.metrics] == [2, 3], "and not once more at the end"


def test_nothing_goes_to_standard_output(tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "g", settings=SHORT)
    assert capfd.readouterr().out == ""


def test_the_guide_is_pushed_on_request(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, name: str, *, exist_ok: bool) -> Any:
            calls.append(("create", (name, exist_ok)))
            return type("Url", (), {"repo_id": f"someone/{name}"})

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            calls.append(("upload", (repo_id, sorted(path.name for path in folder_path.iterdir()))))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "g", settings=SHORT, push_to_hub="guide")
    assert calls[0] == ("create", ("guide", True))
    assert calls[1][1][0] == "someone/guide"
    assert "adapter_model.safetensors" in calls[1][1][1]


def test_the_curve_reaches_a_tracker(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    logged: list[dict[str, float]] = []

    class Tracker(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            logged.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["wandb"])
    settings = dataclasses.replace(SHORT, report_to=("wandb",))
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "g", settings=settings)
    assert {"loss", "accuracy", "margin"} <= logged[0].keys()
    assert any({"eval_loss", "eval_accuracy", "eval_margin"} <= logs.keys() for logs in logged)


@pytest.mark.parametrize(
    ("name", "problem"), [("tensorbord", "Did you mean 'tensorboard'"), ("neptune", "not installed")]
)
def test_a_tracker_that_cannot_be_had_is_refused(name: str, problem: str, tiny: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=problem):
        train_arm(tiny, PAIRS, out=tmp_path / "g", settings=dataclasses.replace(SHORT, report_to=(name,)))
    assert not list(tmp_path.iterdir())


# Refusals. Each comes before anything is written.


def test_an_output_in_the_way_is_refused_and_untouched(finished: Path, tiny: str) -> None:
    before = (finished / "guide.json").read_text()
    with pytest.raises(OutputExistsError, match=r"--overwrite"):
        train_arm(tiny, PAIRS, out=finished, settings=SHORT)
    assert (finished / "guide.json").read_text() == before


def test_overwrite_replaces(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "old.txt").write_text("old")
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "g", settings=SHORT, overwrite=True)
    assert not (tmp_path / "g" / "old.txt").exists()
    assert (tmp_path / "g" / "guide.json").exists()


def test_a_sequence_longer_than_the_model_holds_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"max_length 512 is more than the 256 tokens"):
        train_arm(tiny, PAIRS, out=tmp_path / "g", settings=dataclasses.replace(SHORT, max_length=512))
    assert not list(tmp_path.iterdir())


def test_no_pairs_are_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no preference pair"):
        train_arm(tiny, [], out=tmp_path / "g", settings=dataclasses.replace(SHORT, eval_share=0))
    assert not list(tmp_path.iterdir())


WRONG: dict[str, dict[str, Any]] = {
    "beta": {"beta": 0},
    "learning_rate": {"learning_rate": float("nan")},
    "eval_share": {"eval_share": 1.0},
    "batch_size": {"batch_size": 0},
    "save_steps": {"save_steps": -1},
    "gamma": {"gamma": float("inf")},
    "dtype": {"dtype": "float16"},
    "max_prompt_length": {"max_prompt_length": 64, "max_length": 64},
    "lora_targets": {"lora_targets": ()},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_setting_out_of_range_is_refused_by_name(name: str) -> None:
    with pytest.raises(OptionError, match=name):
        ArmSettings(**WRONG[name])


def test_a_loss_that_is_not_finite_stops_the_run(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.training.arm import trainer

    monkeypatch.setattr(trainer, "token_logprobs", lambda logits, labels: logits.sum(-1) * float("nan"))
    with pytest.raises(NotFiniteError, match=r"The loss is nan at step 2"):
        train_arm(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "g", settings=SHORT)
    assert not (tmp_path / "g").exists()


# After the worst. Each run must end in the very weights and the very curve of the run that was left alone.

KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from trimtab.training.arm.train import ArmSettings, train_arm
from trimtab.training.pairs.formats import PreferencePair
how, model, out, settings, pairs, held = json.loads(sys.argv[1])
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
read = lambda rows: [PreferencePair(tuple(prompt), chosen, rejected) for prompt, chosen, rejected in rows]
settings["lora_targets"], settings["report_to"] = tuple(settings["lora_targets"]), tuple(settings["report_to"])
if how == "inside a checkpoint":
    save = torch.save
    def half(content, path, *args, **options):
        save(content, path, *args, **options)
        if "checkpoint-8" in str(path) and str(path).endswith("optimizer.pt"):
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            kill()
    torch.save = half
def progress(at):
    if how == "between checkpoints" and at.step == 7:
        kill()
train_arm(model, read(pairs), eval_pairs=read(held), out=out, settings=ArmSettings(**settings), progress=progress)
"""


@pytest.mark.parametrize("how", ["between checkpoints", "inside a checkpoint"])
def test_a_killed_run_goes_on_exactly(how: str, finished: Path, tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "vowels"
    rows = [[[pair.prompt, pair.chosen, pair.rejected] for pair in pairs] for pairs in (PAIRS, HELD)]
    told = json.dumps([how, tiny, str(out), dataclasses.asdict(SETTINGS), *rows])
    done = subprocess.run([sys.executable, "-c", KILLED, told], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    workspace = checkpoints.workspace_of(out)
    assert not out.exists()
    if how == "inside a checkpoint":
        assert (workspace / "checkpoint-8" / "optimizer.pt").stat().st_size == 100
    good = checkpoints.last_good(workspace)
    assert good is not None
    assert good.name == "checkpoint-4"

    with pytest.raises(OutputExistsError, match=r"vowels\.partial already exists"):
        train_arm(tiny, PAIRS, eval_pairs=HELD, out=out, settings=SETTINGS)
    heard: list[int] = []
    data = PairData(tuple(PAIRS), ())
    train_arm(
        tiny, data, eval_pairs=HELD, out=out, settings=SETTINGS, resume=True, progress=lambda at: heard.append(at.step)
    )
    assert heard[0] == 5
    assert _same(weights(out), weights(finished))
    assert curve(out) == curve(finished)


@pytest.fixture
def stopped(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a run whose disk was full at its second checkpoint."""
    out, save = tmp_path / "vowels", torch.save

    def full(content: Any, path: Any, *args: Any, **options: Any) -> None:
        if "checkpoint-8" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(content, path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(CheckpointError, match=r"No space left.*checkpoint-4 is whole.*--resume"):
            train_arm(tiny, PAIRS, eval_pairs=HELD, out=out, settings=SETTINGS)
    return out


def test_a_full_disk_leaves_the_last_good_checkpoint(stopped: Path, finished: Path, tiny: str) -> None:
    assert [path.name for path in checkpoints.workspace_of(stopped).glob("checkpoint-*")] == ["checkpoint-4"]
    train_arm(tiny, PAIRS, eval_pairs=HELD, out=stopped, settings=SETTINGS, resume=True)
    assert _same(weights(stopped), weights(finished))
    assert curve(stopped) == curve(finished)


def test_a_run_is_continued_only_as_it_was(stopped: Path, tiny: str) -> None:
    with pytest.raises(
        OptionError,
        match=r"other settings: lora_dropout is 0\.0 here and 0\.1 in the run; epochs is",
    ):
        train_arm(tiny, PAIRS, eval_pairs=HELD, out=stopped, settings=SHORT, resume=True)
    with pytest.raises(OptionError, match=r"the number of training pairs is 47 here and 48 in the run"):
        train_arm(tiny, PAIRS[1:], eval_pairs=HELD, out=stopped, settings=SETTINGS, resume=True)


def test_a_finished_run_has_nothing_left_to_do(finished: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "load_model", lambda *args, **options: pytest.fail("loaded a model"))
    data = PairData(tuple(PAIRS), ("pairs.jsonl",))
    result = train_arm(tiny, data, eval_pairs=HELD, out=finished, settings=SETTINGS, resume=True)
    assert result.num_eval_pairs == len(HELD)
    with pytest.raises(
        OptionError,
        match=r"is finished.*data is none here and pairs.jsonl in the run",
    ):
        train_arm(tiny, PAIRS[:9], eval_pairs=HELD, out=finished, settings=SETTINGS, resume=True)


TOGETHER = """
import json, sys
from trimtab.training.arm.train import ArmSettings, train_arm
from trimtab.training.pairs.formats import PreferencePair
model, out, settings, pairs, held = json.loads(sys.argv[1])
read = lambda rows: [PreferencePair(tuple(prompt), chosen, rejected) for prompt, chosen, rejected in rows]
settings["lora_targets"], settings["report_to"] = tuple(settings["lora_targets"]), tuple(settings["report_to"])
train_arm(model, read(pairs), eval_pairs=read(held), out=out, settings=ArmSettings(**settings))
"""


@pytest.mark.slow
def test_two_processes_draw_the_curve_of_one(tiny: str, tmp_path: Path, repository: Path) -> None:
    held = HELD[:-1]  # an odd number: the last batch of the evaluation is padded with repeats
    one = dataclasses.replace(SETTINGS, lora_dropout=0.0)
    two = dataclasses.replace(one, gradient_accumulation=1)  # of each process
    train_arm(tiny, PAIRS, eval_pairs=held, out=tmp_path / "one", settings=one)
    rows = [[[pair.prompt, pair.chosen, pair.rejected] for pair in pairs] for pairs in (PAIRS, held)]
    (tmp_path / "run.py").write_text(TOGETHER)
    config = repository / "recipes" / "two_processes_cpu.yaml"
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config))
    told = json.dumps([tiny, str(tmp_path / "two"), dataclasses.asdict(two), *rows])
    done = subprocess.run(
        [*launch, str(tmp_path / "run.py"), told],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert dict(theirs) == pytest.approx(dict(ours), rel=1e-3, abs=1e-5)
    assert json.loads((tmp_path / "two" / "guide.json").read_text())["metrics"]["num_eval_pairs"] == len(held)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=1e-3, atol=1e-4)
