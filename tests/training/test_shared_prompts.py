"""An accuracy's interval is over prompts: ten held-out pairs of one prompt are no ten independent trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from trimtab.statistics import wilson_interval
from trimtab.training.arm.train import ArmSettings, train_arm
from trimtab.training.dpo.train import DpoSettings, train_dpo
from trimtab.training.pairs.run import PairResult
from trimtab.training.parm.train import ParmSettings, train_parm
from trimtab.training.reward.train import RewardSettings, train_reward

from .conftest import vowel_pairs

SHORT = {"max_length": 64, "epochs": 1, "batch_size": 8, "gradient_accumulation": 1, "logging_steps": 1}
PAIRS = vowel_pairs(8)
PROMPTS = vowel_pairs(6, seed=5)
SHARED = [dataclasses.replace(pair, chosen=pair.chosen + "e" * more) for pair in PROMPTS for more in range(5)]
APART = [
    dataclasses.replace(pair, prompt=[{"role": "user", "content": f"{number}: {pair.prompt}"[:20]}])
    for number, pair in enumerate(SHARED)
]


def settings_of(kind: type, **more: Any) -> Any:
    return kind(**SHORT, **more)


TRAININGS: dict[str, Callable[[str, Path, list[Any]], PairResult]] = {
    "arm": lambda model, out, held: train_arm(
        model, PAIRS, eval_pairs=held, out=out, settings=settings_of(ArmSettings, max_prompt_length=32)
    ),
    "dpo": lambda model, out, held: train_dpo(
        model, PAIRS, eval_pairs=held, out=out, settings=settings_of(DpoSettings, max_prompt_length=32)
    ),
    "reward": lambda model, out, held: train_reward(
        model, PAIRS, eval_pairs=held, out=out, settings=settings_of(RewardSettings)
    ),
    "parm": lambda model, out, held: train_parm(
        model,
        {"one": PAIRS, "two": PAIRS},
        eval_pairs={"one": held, "two": held},
        out=out,
        settings=settings_of(ParmSettings, max_prompt_length=32),
    ),
}


@pytest.mark.parametrize("method", list(TRAININGS))
def test_pairs_of_one_prompt_count_together(method: str, tiny: str, tmp_path: Path) -> None:
    shared = TRAININGS[method](tiny, tmp_path / "shared", SHARED)
    assert shared.metrics["num_eval_prompts"] == len(PROMPTS)
    assert shared.eval_accuracy is not None
    assert shared.eval_accuracy_low is not None
    assert shared.eval_accuracy_high is not None
    alone = wilson_interval(round(shared.eval_accuracy * shared.num_eval_pairs), shared.num_eval_pairs)
    assert shared.eval_accuracy == pytest.approx(alone.value)
    assert shared.eval_accuracy_high - shared.eval_accuracy_low > 1.1 * (alone.high - alone.low)
    assert "says little; these are 6." in (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")


def test_pairs_of_their_own_prompts_are_trials(tiny: str, tmp_path: Path) -> None:
    apart = TRAININGS["arm"](tiny, tmp_path / "apart", APART)
    assert apart.metrics["num_eval_prompts"] == apart.num_eval_pairs == len(APART)
    assert apart.eval_accuracy is not None
    alone = wilson_interval(round(apart.eval_accuracy * len(APART)), len(APART))
    assert (apart.eval_accuracy_low, apart.eval_accuracy_high) == pytest.approx((alone.low, alone.high))
