"""What every run on preference pairs does alike: one that was killed goes on exactly, and one that is done stays so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import safetensors.torch

from trimtab.errors import OptionError
from trimtab.training.dpo.train import DpoSettings, train_dpo
from trimtab.training.pairs.data import PairData
from trimtab.training.reward.train import RewardSettings, train_reward
from trimtab.training.run import checkpoints, run

from .conftest import vowel_pairs
from .interrupted import curve_of, kill_at

PAIRS, HELD = vowel_pairs(48), vowel_pairs(24, seed=1)
DATA = PairData(tuple(PAIRS), ("pairs.jsonl",))
SETTINGS = {
    "learning_rate": 0.005,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "epochs": 2,
    "max_length": 64,
    "logging_steps": 2,
    "save_steps": 4,
    "lora_dropout": 0.1,
}
"""Twelve steps of eight pairs, checkpoints after 4, 8 and 12; the dropout makes the random state matter."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run, and what made it."""

    train: Any
    settings: Any
    directory: Path

    def again(self, model: str, data: Any = DATA, *, out: Path | None = None) -> Any:
        """Ask for the same run with `resume`."""
        out = out or self.directory
        return self.train(model, data, eval_pairs=HELD, out=out, settings=self.settings, resume=True)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((train_dpo, DpoSettings(**SETTINGS, beta=0.3, max_prompt_length=32)), id="dpo"),
        pytest.param((train_reward, RewardSettings(**SETTINGS)), id="reward"),
    ],
)
def finished(request: pytest.FixtureRequest, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    train, settings = request.param
    out = tmp_path_factory.mktemp("runs") / "vowels"
    train(tiny, DATA, eval_pairs=HELD, out=out, settings=settings)
    return Finished(train, settings, out)


def test_a_killed_run_goes_on_exactly(finished: Finished, tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "vowels"
    kill_at(7, finished.train, tiny, out, finished.settings, PAIRS, HELD)
    good = checkpoints.last_good(checkpoints.workspace_of(out))
    assert good is not None
    assert good.name == "checkpoint-4"
    finished.again(tiny, PairData(tuple(PAIRS), ()), out=out)
    resumed, whole = (
        safetensors.torch.load_file(path / "adapter_model.safetensors") for path in (out, finished.directory)
    )
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in resumed)
    assert curve_of(out) == curve_of(finished.directory)


def test_a_finished_run_has_nothing_left_to_do(finished: Finished, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "load_model", lambda *args, **options: pytest.fail("loaded a model"))
    result = finished.again(tiny)
    assert (result.num_pairs, result.num_eval_pairs) == (len(PAIRS), len(HELD))
    with pytest.raises(OptionError, match=r"is finished.*data is none here and pairs.jsonl in the run"):
        finished.again(tiny, PAIRS[:9])


def test_a_finished_run_of_another_method_is_not_taken_for_its_own(
    finished: Finished, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_model", lambda *args, **options: pytest.fail("loaded a model"))
    is_policy = finished.train is train_dpo
    train, settings = (train_reward, RewardSettings()) if is_policy else (train_dpo, DpoSettings())
    here, there = ("reward", "policy") if is_policy else ("policy", "reward")
    with pytest.raises(OptionError, match=f"the kind of training is {here} here and {there} in the run"):
        train(tiny, DATA, eval_pairs=HELD, out=finished.directory, settings=settings, resume=True)


def test_nothing_else_is_left_beside_a_finished_run(finished: Finished) -> None:
    assert [path.name for path in finished.directory.parent.iterdir()] == ["vowels"]
