"""Direct preference optimisation: the loss of the paper, a reference that stays, and a policy that loads as a guide."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import safetensors.torch

from trimtab.errors import OptionError
from trimtab.storage.loading import load_guide, load_model
from trimtab.training.dpo.train import DpoSettings, train_dpo
from trimtab.training.dpo.trainer import PairDpoTrainer, dpo_config, dpo_parts
from trimtab.training.pairs.data import PairData
from trimtab.training.pairs.tokens import TokenData, TokenPair
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.trainer import build_trainer

from .conftest import vowel_pairs

PAIRS, HELD = vowel_pairs(48), vowel_pairs(24, seed=1)
SETTINGS = DpoSettings(
    learning_rate=0.01,
    beta=0.3,
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
SHORT = dataclasses.replace(SETTINGS, epochs=0.5, save_steps=0, lora_dropout=0.0)
TOKEN_PAIRS = (
    TokenPair((1, 40, 41), (50, 51, 3), (60, 61, 62, 63, 3)),
    TokenPair((1, *range(80, 110)), (52, 53, 3), (50, 3)),
    TokenPair((1, 42), (60, 3), (50, 51, 3)),
    TokenPair((1, 43), (61, 62, 3), (51, 3)),
)
"""Pairs of different lengths, so that there is padding."""


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policies") / "vowels"
    train_dpo(tiny, PairData(tuple(PAIRS), ("pairs.jsonl",)), eval_pairs=HELD, out=out, settings=SETTINGS)
    return out


def card_of(directory: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((directory / "guide.json").read_text())
    return card


def logprob(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    """log π(y | x) of one sequence, no padding, every logit."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits.float().log_softmax(-1)[0]
    return float(sum(logprobs[len(prompt) - 1 + at, token] for at, token in enumerate(response)))


@pytest.fixture
def trained(host: Callable[[str], Any], tmp_path: Path) -> Callable[[str, bool], PairDpoTrainer]:
    """A trainer after some steps, so that the policy is no longer the reference."""

    def build(model: str, full: bool) -> PairDpoTrainer:
        settings = dataclasses.replace(SHORT, full=full, epochs=8, gradient_accumulation=1)
        if full:
            settings = dataclasses.replace(settings, learning_rate=1e-3)
        data = TokenData(TOKEN_PAIRS, 0, 0, 0)
        config = dpo_config(settings, tmp_path / "work")
        parts = dpo_parts(host(model), data, data, settings, config.world_size)
        trainer = build_trainer(parts, settings, config, RunArguments(out=tmp_path))
        trainer.train()
        trainer.model.eval()
        return trainer

    return build


@pytest.mark.parametrize("family", ["tiny", "gemma"])
@pytest.mark.parametrize("full", [False, True])
def test_the_loss_is_the_papers(
    full: bool, family: str, trained: Callable[[str, bool], PairDpoTrainer], request: pytest.FixtureRequest
) -> None:
    from transformers import AutoModelForCausalLM

    model = request.getfixturevalue(family)
    trainer = trained(model, full)
    reference = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    rows = [{name: list(getattr(pair, name)) for name in TokenPair.__slots__} for pair in TOKEN_PAIRS]
    line = trainer.evaluate()
    with torch.no_grad():
        found = float(trainer.compute_loss(trainer.model, trainer.data_collator(rows)))
    expected, gaps = [], []
    for pair in TOKEN_PAIRS:
        better, worse = (
            logprob(trainer.model, pair.prompt_ids, response) - logprob(reference, pair.prompt_ids, response)
            for response in (pair.chosen_ids, pair.rejected_ids)
        )
        gaps.append(better - worse)
        expected.append(math.log1p(math.exp(-SHORT.beta * (better - worse))))
    assert min(map(abs, gaps)) > 1e-3, "the policy is not the reference, so the comparison says something"
    assert found == pytest.approx(sum(expected) / len(expected), abs=1e-5)

    # What is reported of all pairs is the same.
    assert line["eval_loss"] == pytest.approx(found, abs=1e-5)
    assert line["eval_margin"] == pytest.approx(SHORT.beta * sum(gaps) / len(gaps), abs=1e-4)
    assert line["eval_num_correct"] == sum(gap > 0 for gap in gaps)


def test_before_the_first_step_the_policy_is_the_reference(
    host: Callable[[str], Any], tiny: str, tmp_path: Path
) -> None:
    data = TokenData(TOKEN_PAIRS, 0, 0, 0)
    config = dpo_config(SHORT, tmp_path / "work")
    parts = dpo_parts(host(tiny), data, data, SHORT, config.world_size)
    trainer = build_trainer(parts, SHORT, config, RunArguments(out=tmp_path))
    line = trainer.evaluate()
    assert line["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert line["eval_margin"] == pytest.approx(0, abs=1e-5)


def test_it_prefers_what_it_was_shown(finished: Path) -> None:
    card = card_of(finished)
    assert (card["kind"], card["form"], card["method"]) == ("policy", "lora", "dpo")
    assert card["metrics"]["eval_accuracy"] >= 0.9
    assert "DPO, arXiv 2305.18290" in (finished / "README.md").read_text()


def test_at_weight_1_it_is_the_policy_that_was_trained(finished: Path, tiny: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trimtab.core import SamplingParams
    from trimtab.decoding.decoder import Decoder

    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(finished)).eval()
    decoder = Decoder(load_model(tiny), {"policy": load_guide(finished)})
    response = (50, 51, 52, 3)
    decoder.add(
        [1, 40, 41],
        SamplingParams(forced=response, trace=True, ignore_eos=True, max_new_tokens=len(response)),
    )
    steps = [step for _ in response for step in decoder.step()]
    mixed = sum(step.trace.chosen.mixed_logprob for step in steps if step.trace is not None)
    assert mixed == pytest.approx(logprob(tuned, (1, 40, 41), response), abs=1e-4)


def test_all_weights_with_full(tiny: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, full=True, learning_rate=1e-3)
    train_dpo(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "full", settings=settings)
    assert card_of(tmp_path / "full")["form"] == "full"
    model = load_model(tmp_path / "full")
    assert model.tokenizer is not None
    assert model.describe()["architecture"] == "LlamaForCausalLM"
    old, new = (safetensors.torch.load_file(Path(path) / "model.safetensors") for path in (tiny, tmp_path / "full"))
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_nothing_goes_to_standard_output(tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_dpo(tiny, PAIRS, eval_pairs=HELD, out=tmp_path / "g", settings=SHORT)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("changes", [{"beta": 0}, {"max_prompt_length": 64, "max_length": 64}, {"learning_rate": -1}])
def test_a_setting_out_of_range_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(changes))):
        DpoSettings(**changes)
