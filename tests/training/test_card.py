"""The guide's own account of itself."""

from __future__ import annotations

import json
from pathlib import Path

from trimtab.training.run.card import About, few_prompts, model_card, versions, write_cards

ABOUT = About("trained as a test.", ("guide = ...",))
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


def test_few_prompts_are_said_to_say_little() -> None:
    few = {"num_eval_pairs": 100, "num_eval_prompts": 10}
    assert few_prompts(few) == "An accuracy over fewer than 30 prompts says little; these are 10."
    assert few_prompts({"num_eval_pairs": 1}) == "An accuracy over fewer than 30 prompts says little; these are 1."
    assert few_prompts({"num_eval_pairs": 100, "num_eval_prompts": 30}) == ""
    assert "says little; these are 10." in model_card({**CARD, "metrics": {**CARD["metrics"], **few}}, ABOUT)


def test_the_card_says_what_was_measured_with_its_interval() -> None:
    text = model_card(CARD, ABOUT)
    assert text.startswith("---\nlibrary_name: ")
    assert (
        "Accuracy on 100 pairs that were not trained on: 0.700 (95 % interval 0.600 to 0.780; Wilson, over prompts)"
        in text
    )
    assert "| beta | 0.05 |" in text
    assert "`someone/model`" in text


def test_the_card_claims_nothing_that_was_not_measured() -> None:
    assert "nothing was measured" in model_card({**CARD, "metrics": {"num_eval_pairs": 0}}, ABOUT)


def test_both_cards_are_written(tmp_path: Path) -> None:
    write_cards(tmp_path, CARD, ABOUT)
    assert json.loads((tmp_path / "guide.json").read_text()) == CARD
    assert (tmp_path / "README.md").read_text() == model_card(CARD, ABOUT)


def test_versions_are_those_that_run() -> None:
    import torch

    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
