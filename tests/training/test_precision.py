"""What a training computes in where nobody says: what is measured, what is kept, and what goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("trl")

from trimtab.errors import OptionError
from trimtab.storage.loading import load_guide
from trimtab.training.arm.train import ArmSettings, train_arm
from trimtab.training.run import precision
from trimtab.training.run.arguments import RunArguments

from .conftest import vowel_pairs

PAIRS, HELD = vowel_pairs(32), vowel_pairs(16, seed=1)
SETTINGS = ArmSettings(
    beta=0.5,
    learning_rate=0.01,
    batch_size=4,
    gradient_accumulation=1,
    max_length=64,
    max_prompt_length=32,
    logging_steps=1,
    save_steps=2,
)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes this processor one that is faster in bfloat16, by as much as the list's number says."""
    gain = [2.0]
    monkeypatch.setattr(precision, "bfloat16_gain", lambda module: gain[0])
    return gain


def card(out: Path) -> Any:
    return json.loads((out / "guide.json").read_text(encoding="utf-8"))


def dtype_of(out: Path) -> str:
    return str(card(out)["hyperparameters"]["dtype"])


def train(model: str, out: Path, **options: Any) -> Path:
    settings = options.pop("settings", SETTINGS)
    train_arm(model, PAIRS, eval_pairs=HELD, out=out, settings=settings, **options)
    return out


def test_a_small_model_is_not_timed() -> None:
    assert precision.bfloat16_gain(nn.Sequential(nn.Linear(8, 8))) == 1.0
    assert precision.bfloat16_gain(nn.ReLU()) == 1.0


def test_a_large_layer_is_timed_and_left_alone() -> None:
    layer = nn.Linear(512, 512)
    assert precision.bfloat16_gain(nn.Sequential(layer)) > 0
    assert layer.weight.dtype == torch.float32


def test_the_weights_are_compact_and_the_buffers_exact() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    precision.compact(module)
    assert {weight.dtype for weight in module.parameters()} == {torch.bfloat16}
    assert module[1].running_mean.dtype == torch.float32


@pytest.mark.usefixtures("faster")
def test_where_it_is_faster_a_run_says_so_and_learns_the_same(tiny: str, tmp_path: Path) -> None:
    compact = train(tiny, tmp_path / "compact")
    exact = train(tiny, tmp_path / "exact", settings=dataclasses.replace(SETTINGS, dtype="float32"))
    assert (dtype_of(compact), dtype_of(exact)) == ("bfloat16", "float32")
    found, expected = (card(out)["metrics"] for out in (compact, exact))
    assert found["eval_loss"] != expected["eval_loss"]
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=0.03)
    assert card(compact)["base"] == card(exact)["base"]
    load_guide(compact)


def test_where_it_is_not_faster_the_settings_stay_open(tiny: str, tmp_path: Path, faster: list[float]) -> None:
    faster[0] = 1.2
    assert dtype_of(train(tiny, tmp_path / "guide")) == "auto"


@pytest.mark.usefixtures("faster")
def test_several_processes_are_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert precision.measured(SETTINGS, nn.ReLU(), RunArguments(out=tmp_path / "guide")) is SETTINGS


class StopError(Exception):
    """Ends a run in the middle."""


@pytest.mark.parametrize("first", [2.0, 1.0])
def test_a_run_goes_on_in_what_it_was_begun_in(first: float, tiny: str, tmp_path: Path, faster: list[float]) -> None:
    """However the processor that it goes on with measures."""
    faster[0] = first
    whole = train(tiny, tmp_path / "whole")

    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise StopError

    with pytest.raises(StopError):
        train(tiny, tmp_path / "guide", progress=stop)
    faster[0] = 3.0 - first
    resumed = train(tiny, tmp_path / "guide", resume=True)
    assert dtype_of(resumed) == dtype_of(whole)
    assert (resumed / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


@pytest.mark.usefixtures("faster")
def test_a_finished_run_is_the_one_that_was_asked_for(tiny: str, tmp_path: Path) -> None:
    out = train(tiny, tmp_path / "guide")
    train(tiny, tmp_path / "guide", resume=True)
    with pytest.raises(OptionError, match="dtype is float32 here and bfloat16 in the run"):
        train(tiny, out, resume=True, settings=dataclasses.replace(SETTINGS, dtype="float32"))


def letters(prompts: Any, texts: Any) -> list[float]:
    return [float(len(set(text))) for text in texts]


@pytest.mark.parametrize("gain", [2.0, 1.0])
def test_an_agents_base_is_kept_so_too_and_the_run_goes_on_in_it(
    gain: float, tiny: str, tmp_path: Path, faster: list[float]
) -> None:
    pytest.importorskip("torchrl")
    from trimtab.training.agent.train import AgentReward, AgentSettings, train_agent

    settings = AgentSettings(
        episodes=6,
        rollout_batch=2,
        max_new_tokens=4,
        top_k=4,
        batch_size=4,
        warmup_batches=1,
        hidden_dim=8,
        save_episodes=2,
    )

    def run(name: str, **options: Any) -> Any:
        rewards = [AgentReward("letters", letters)]
        train_agent(tiny, ["ab", "cd"], rewards, out=tmp_path / name, settings=settings, **options)
        return card(tmp_path / name)

    def stop(progress: Any) -> None:
        if progress.step == 4:
            raise StopError

    faster[0] = gain
    whole = run("whole")
    assert whole.get("dtype") == ("bfloat16" if gain > 1 else None)
    with pytest.raises(StopError):
        run("guide", progress=stop)
    faster[0] = 3.0 - gain
    assert run("guide", resume=True).get("dtype") == whole.get("dtype")
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "guide")]
    assert same[0] == same[1]
    exact = run("exact", dtype="float32")
    assert "dtype" not in exact
    differs = (tmp_path / "exact" / "model.safetensors").read_bytes() != same[0]
    assert differs == (gain > 1)
