"""A head on a GGUF file: the state it reads is the one that the file's own output layer reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.guides.test_head import random_head
from tests.models.llama.test_llama_model import _model, _prompts
from trimtab import Decoder, Head, LowRankHead, SamplingParams
from trimtab.models.hf import HFModel
from trimtab.models.llama.model import LlamaModel
from trimtab.testing import check_guide

pytestmark = pytest.mark.usefixtures("needs_llama")


@pytest.fixture(scope="module")
def model(file: Path) -> LlamaModel:
    return _model(file)


@pytest.fixture(scope="module")
def head(model: LlamaModel) -> LowRankHead:
    return random_head(model, scale=0.3)


def test_the_laws_hold(model: LlamaModel, head: LowRankHead) -> None:
    check_guide(Head(head), model, num_steps=2, tolerance=1e-3)


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.5])
def test_guided_tokens_are_those_of_transformers(
    model: LlamaModel, module: Any, head: LowRankHead, weight: float
) -> None:
    prompts = _prompts(20)
    found, expected = (
        Decoder(base, {"g": Head(head)}, max_rows=7).generate(
            prompts, weights={"g": weight}, temperature=0, max_new_tokens=8, ignore_eos=True
        )
        for base in (model, HFModel(module))
    )
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


def test_drafts_chunks_and_company_change_no_token(model: LlamaModel, head: LowRankHead) -> None:
    guides, forced = {"g": Head(head)}, (40, 41, 42, 43) * 3
    asked = [
        (prompt, SamplingParams(weights={"g": weight}, seed=4, forced=forced, max_new_tokens=16, ignore_eos=True))
        for prompt, weight in zip(_prompts(4, seed=2), (1.0, 0.0, -1.0, 0.5), strict=True)
    ]
    alone = [next(iter(Decoder(model, guides).answers([one]))).token_ids for one in asked]
    drafted = [(prompt, replace(params, draft="lookup", draft_tokens=4)) for prompt, params in asked]
    decoder = Decoder(model, guides, prefill_chunk=5, max_rows=3)
    assert [answer.token_ids for answer in decoder.answers(drafted)] == alone
