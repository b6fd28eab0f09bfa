"""Guides inside transformers' generate: the Decoder's answers, on padded batches and under beam search."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from tests.tiny import tiny_module, tiny_tokenizer, write_lora
from trimtab import ARM, Decoder, load_guide
from trimtab.decoding.transformers_processor import GuidanceProcessor
from trimtab.errors import OptionError
from trimtab.models.hf import HFModel

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]


@pytest.fixture
def model() -> HFModel:
    return HFModel(tiny_module(eos_token_id=None))


@pytest.fixture
def guides(model: HFModel, tmp_path: Path) -> dict[str, Any]:
    return {
        "lora": load_guide(write_lora(tmp_path / "a", model.module)),
        "small": ARM(HFModel(tiny_module("gpt2", seed=5, eos_token_id=None))),
    }


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[1] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def test_greedy_on_a_left_padded_batch_gives_the_decoders_tokens(model: HFModel, guides: dict[str, Any]) -> None:
    weights = [{"lora": 1.0, "small": 0.5}, {"lora": -0.5, "small": 0.6}, {"lora": 0.0, "small": 2.0}]
    inputs = padded(PROMPTS)
    processor = GuidanceProcessor(model, guides, weights=weights, attention_mask=inputs["attention_mask"])
    output = model.module.generate(**inputs, logits_processor=[processor], do_sample=False, max_new_tokens=8)
    answers = Decoder(model, guides).generate(PROMPTS, weights=weights, temperature=0, max_new_tokens=8)
    assert output[:, 5:].tolist() == [list(answer.token_ids) for answer in answers]


def test_a_processor_may_be_used_again(model: HFModel, guides: dict[str, Any]) -> None:
    processor = GuidanceProcessor(model, guides)
    for prompt in ([3, 4, 5], [3, 4, 6], [3, 4, 5]):
        ids = torch.tensor([prompt])
        output = model.module.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], do_sample=False, max_new_tokens=6
        )
        answer = next(Decoder(model, guides).generate([prompt], temperature=0, max_new_tokens=6))
        assert output[0, 3:].tolist() == list(answer.token_ids)


def test_beams_keep_their_own_caches(model: HFModel, guides: dict[str, Any]) -> None:
    """Beam search against a guide without any cache, which cannot confuse its rows."""

    class Afresh(GuidanceProcessor):
        def _sources(self, rows: list[list[int]]) -> None:
            return None

    inputs = padded(PROMPTS)
    outputs = []
    for kind in (GuidanceProcessor, Afresh):
        processor = kind(model, guides, attention_mask=inputs["attention_mask"])
        if kind is Afresh:  # the mask of a longer prefix, as every step begins anew
            processor._unpadded = lambda rows: [  # type: ignore[method-assign]
                [token for at, token in enumerate(row) if at >= 5 or keep[at]]
                for row, keep in zip(rows, inputs["attention_mask"].repeat_interleave(3, 0).tolist(), strict=True)
            ]
        outputs.append(
            model.module.generate(
                **inputs, logits_processor=[processor], num_beams=3, do_sample=False, max_new_tokens=7
            ).tolist()
        )
    assert outputs[0] == outputs[1]


def test_a_batch_that_looks_padded_needs_its_mask(model: HFModel, guides: dict[str, Any]) -> None:
    named = HFModel(model.module, tiny_tokenizer())
    processor = GuidanceProcessor(named, {"lora": guides["lora"]})
    with pytest.raises(OptionError, match="attention_mask"):
        processor(padded(PROMPTS)["input_ids"], torch.zeros(3, 61))


def test_weights_are_checked(model: HFModel, guides: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="Unknown guide"):
        GuidanceProcessor(model, guides, weights={"lara": 1.0})
    with pytest.raises(OptionError, match="finite"):
        GuidanceProcessor(model, guides, weights={"lora": float("inf")})


def test_it_answers_what_transformers_asks_a_processor(model: HFModel, guides: dict[str, Any]) -> None:
    """It cannot inherit from `LogitsProcessor` without importing transformers where trimtab is imported."""
    processor = GuidanceProcessor(model, guides)
    asked = {name for name in vars(LogitsProcessor) if not name.startswith("__")}
    assert {name for name in asked if not hasattr(processor, name)} == set()
    assert processor.supports_continuous_batching is False
    assert list(inspect.signature(processor.__call__).parameters) == ["input_ids", "scores"]
