"""The guide's own account of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.training.card import model_card, proportion_interval, versions, write_cards

CARD = {
    "format": 1,
    "kind": "arm",
    "form": "lora",
    "base": {"name": "someone/model", "architecture": "LlamaForCausalLM"},
    "data": {"files": ["a.jsonl"], "num_pairs": 7, "fingerprint": "f" * 64},
    "hyperparameters": {"beta": 0.05},
    "metrics": {
        "eval_accuracy": 0.7,
        "eval_accuracy_low": 0.6,
        "eval_accuracy_high": 0.78,
        "num_eval_pairs": 100,
    },
    "versions": {"trimtab": "0"},
}


def test_the_interval_by_hand() -> None:
    # 70 of 100: centre 0.69260, half-width 0.08897 (Wilson 1927).
    assert proportion_interval(70, 100) == pytest.approx((0.60415, 0.78109), abs=1e-4)


def test_the_card_says_what_was_measured_with_its_interval() -> None:
    text = model_card(CARD)
    assert text.startswith("---\nlibrary_name: ")
    assert "Accuracy on 100 pairs that were not trained on: 0.700 (95 % interval 0.600 to 0.780; Wilson)" in text
    assert "| beta | 0.05 |" in text
    assert "`someone/model`" in text


def test_the_card_claims_nothing_that_was_not_measured() -> None:
    assert "nothing was measured" in model_card({**CARD, "metrics": {"num_eval_pairs": 0}})


def test_both_cards_are_written(tmp_path: Path) -> None:
    write_cards(tmp_path, CARD)
    assert json.loads((tmp_path / "guide.json").read_text()) == CARD
    assert (tmp_path / "README.md").read_text() == model_card(CARD)


def test_versions_are_those_that_run() -> None:
    import torch

    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
