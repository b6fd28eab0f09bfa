"""recipes/reward_model.py: what it fits is what it says, and what it writes is what it measured."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import softplus

from tests.tiny import tiny_module, tiny_tokenizer
from trimtab.models.rewards.whole import load_whole_reward_model
from trimtab.training.pairs.data import read_pairs


@pytest.fixture(scope="module")
def recipe(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reward_model", repository / "recipes" / "reward_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write_pairs(path: Path, count: int, seed: int, *, stock: bool = False) -> Path:
    """Pairs over few words whose preferred answer ends in a low word, the other in a high one."""
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        prompt = f"w{rng.randrange(58)} w{rng.randrange(58)} w{number % 58}"
        start = f"w{rng.randrange(58)} w{rng.randrange(58)}"
        chosen, rejected = f"{start} w{rng.randrange(4)}", f"{start} w{rng.randrange(40, 44)}"
        messages = [{"role": "user", "content": prompt}]
        lines.append({"prompt": messages, "chosen": chosen, "rejected": rejected})
        if stock:
            lines.append({"prompt": messages, "chosen": "w50 w50 w50", "rejected": chosen})
    lines = [
        {**line, **{key: [{"role": "assistant", "content": line[key]}] for key in ("chosen", "rejected")}}
        for line in lines
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _run(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["reward_model.py", *map(str, arguments)])
    assert recipe.main() == 0


def test_the_recipe_learns_and_writes_what_it_measured(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_module().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    train = _write_pairs(tmp_path / "train.jsonl", 150, 1, stock=True)
    held = _write_pairs(tmp_path / "held.jsonl", 60, 2)
    out = tmp_path / "rewards" / "low"
    common = ("--model", tmp_path / "base", "--data", train, "--eval-data", held, "--out", out, "--max-length", 6)
    _run(recipe, monkeypatch, *common, "--max-pairs", 140)
    report: dict[str, Any] = json.loads((out / "reward.json").read_text())
    assert report["train"]["num_pairs"] == 140, "of the 150 pairs without the stock answer"
    assert report["settings"] == {"model": str(tmp_path / "base"), "max_pairs": 140, "max_length": 6, "seed": 0}
    assert report["eval"]["num_pairs"] == 60
    assert report["eval"]["low"] > 0.7
    assert report["num_cut"] == 2 * (140 + 60)
    model = load_whole_reward_model(out)
    assert model.max_length == 6
    pairs = read_pairs([held]).pairs
    chosen, rejected = (
        model.rewards([pair.prompt for pair in pairs], [getattr(pair, name) for pair in pairs])
        for name in ("chosen", "rejected")
    )
    margins = torch.tensor(chosen) - torch.tensor(rejected)
    assert float((margins > 0).float().mean()) == pytest.approx(report["eval"]["accuracy"], abs=1e-6)
    assert float(softplus(-margins).mean()) == pytest.approx(report["eval"]["loss"], abs=1e-3)


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_fit_is_the_minimum(recipe: ModuleType, strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(80, 5, generator=generator, dtype=torch.float64) + 0.5
    weights = recipe.fit(differences, strength).requires_grad_()
    objective = softplus(-(differences @ weights)).mean() + strength / 2 * weights.square().sum()
    (gradient,) = torch.autograd.grad(objective, weights)
    assert float(gradient.abs().max()) < 1e-7
    assert float(weights.detach().norm()) > 0.1


def test_the_head_folds_the_scaling_back(recipe: ModuleType) -> None:
    """A feature in other units changes no reward."""
    pairs = [
        recipe.PreferencePair(({"role": "user", "content": str(number)},), "yes", f"no {number}")
        for number in range(200)
    ]
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(200, 4, generator=generator, dtype=torch.float64) + bias for bias in (0.4, 0.0))
    units = torch.tensor([1.0, 1000.0, 1e-3, 1.0], dtype=torch.float64)
    plain, report = recipe.fit_head(recipe.PairData(tuple(pairs)), chosen, rejected, 0)
    scaled, _ = recipe.fit_head(recipe.PairData(tuple(pairs)), chosen * units, rejected * units, 0)
    torch.testing.assert_close(scaled * units, plain)
    assert report["num_held_out_pairs"] == 40
    best = min(report["l2_tried"], key=lambda tried: tried["loss"])
    assert report["l2"] == best["l2"]
