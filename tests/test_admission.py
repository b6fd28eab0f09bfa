"""What a request brings is checked against what the model can take before anything runs, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.guides.rewards import adapter_rewards
from tests.laws.tiny_models import tiny_model
from tests.tiny import byte_llama, byte_tokenizer, tiny_module
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError, PromptError
from trimtab.guides.arm import ARM
from trimtab.guides.transfer_q import RolloutGuide
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.prompts import encode_prompt, num_readable

NAMED = 259
"""Tokens of `byte_tokenizer`; `<picture>` is the next one, which the model has no row for."""


@pytest.fixture(scope="module")
def tall() -> HFModel:
    """A model whose tokenizer was given a token more than its embedding has rows."""
    tokenizer = byte_tokenizer()
    module = byte_llama(tokenizer, max_length=64)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    return HFModel(module, tokenizer)


UNREADABLE: dict[str, Prompt] = {
    "text": "what is <picture>?",
    "messages": [{"role": "user", "content": "what is <picture>?"}],
    "a role": [{"role": "<picture>", "content": "hi"}],
    "ids": [5, NAMED, 6],
    "a negative id": [5, -1],
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_token_without_a_row_is_refused_and_disturbs_nobody(tall: HFModel, kind: str) -> None:
    decoder = Decoder(tall)
    how = SamplingParams(max_new_tokens=6, ignore_eos=True, seed=1)
    [alone] = decoder.answers([("hello", how)])
    number = decoder.add("hello", how)
    found = [step.token_id for step in decoder.step()]
    with pytest.raises(PromptError, match=r"-1|259"):
        decoder.add(UNREADABLE[kind], how)
    while decoder.num_running:
        found += [step.token_id for step in decoder.step() if step.request_id == number]
    assert found == list(alone.token_ids)


def test_the_refusal_of_a_text_names_the_token(tall: HFModel) -> None:
    with pytest.raises(PromptError, match=r"'<picture>'.* token 259"):
        encode_prompt(tall, "<picture>")


@pytest.mark.parametrize("prompt", [None, 5, 1.5, {1: 2}, object()])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(PromptError, match="give a text"):
        Decoder(TabularModel.random(8, seed=0)).add(prompt)


def test_a_forced_token_without_a_row_is_refused(tall: HFModel) -> None:
    with pytest.raises(OptionError, match="Forced token 259"):
        Decoder(tall).add("hello", SamplingParams(forced=(65, NAMED)))


def with_rows(num_in: int, num_out: int) -> HFModel:
    """A model with so many rows of its embedding and of its head."""
    module = tiny_module("llama", tie_word_embeddings=False)
    torch.manual_seed(1)
    module.set_input_embeddings(nn.Embedding(num_in, 32))
    module.set_output_embeddings(nn.Linear(32, num_out, bias=False))
    return HFModel(module.eval())


def test_a_head_that_is_wider_than_the_embedding_draws_no_token_that_cannot_be_fed() -> None:
    model = with_rows(20, 61)
    assert (model.vocab_size, num_readable(model)) == (61, 20)
    answers = Decoder(model).generate([[1, 2]] * 20, max_new_tokens=8, ignore_eos=True, temperature=3.0, seed=0)
    drawn = {token for answer in answers for token in answer.token_ids}
    assert max(drawn) < 20
    with pytest.raises(PromptError, match="Token id 20"):
        Decoder(model).add([20])
    with pytest.raises(OptionError, match="Forced token 20"):
        Decoder(model).add([1], SamplingParams(forced=(20,)))


def test_an_embedding_that_is_wider_than_the_head_reads_what_it_cannot_say() -> None:
    model = with_rows(70, 61)
    [answer] = Decoder(model).generate([[65, 1, 69]], max_new_tokens=4, repetition_penalty=1.4, seed=0, trace=True)
    assert answer.error is None
    with pytest.raises(OptionError, match="Forced token 61"):
        Decoder(model).add([65], SamplingParams(forced=(61,)))


@pytest.fixture(scope="module")
def small_guide() -> ARM:
    """A guide of the same tokens, whose model was padded less than the base."""
    tokenizer = byte_tokenizer()
    return ARM(HFModel(byte_llama(tokenizer, max_length=64, seed=2), tokenizer))


@pytest.fixture(scope="module")
def padded() -> HFModel:
    """A base with rows that no token has."""
    tokenizer = byte_tokenizer()
    module = byte_llama(tokenizer, max_length=64)
    module.resize_token_embeddings(320)
    return HFModel(module, tokenizer)


def test_ids_that_a_guide_cannot_read_are_refused_where_it_runs(padded: HFModel, small_guide: ARM) -> None:
    decoder = Decoder(padded, {"kind": small_guide})
    [unguided] = decoder.generate([[5, 300]], weights={"kind": 0.0}, max_new_tokens=2, seed=0)
    assert unguided.error is None
    with pytest.raises(PromptError, match=r"Token id 300 .* guide kind can read"):
        decoder.add([5, 300], SamplingParams(weights={"kind": 1.0}))
    with pytest.raises(OptionError, match=r"Forced token 300 .* of guide kind"):
        decoder.add([5], SamplingParams(weights={"kind": 1.0}, forced=(300,)))


@pytest.mark.parametrize("prompt", [[5, NAMED], "no <picture>", lambda prompt: "no <picture>"])
def test_a_guides_own_prompt_is_checked_too(tall: HFModel, prompt: Prompt | Callable[[Prompt], Prompt]) -> None:
    decoder = Decoder(tall, {"negative": ARM(tall, prompt=prompt)})
    with pytest.raises(PromptError, match="259"):
        decoder.add("hello", SamplingParams(weights={"negative": 0.5}))
    assert isinstance(decoder.add("hello", SamplingParams(weights={"negative": 0.0})), int)


def test_completions_of_a_rollout_fit_into_what_its_models_hold() -> None:
    """At the end of the context a completion was longer than the policy holds, and the whole step failed."""
    base = tiny_model("llama")
    decoder = Decoder(base, {"look": RolloutGuide(adapter_rewards(base), num_tokens=5)})
    how = SamplingParams(weights={"look": 1.0}, max_new_tokens=50, seed=0, ignore_eos=True)
    answers = list(decoder.answers([([5] * 56, how), ([7] * 57, how)]))
    assert [answer.error for answer in answers] == [None, None]
    assert [len(answer.prompt_ids) + len(answer.token_ids) for answer in answers] == [59, 59]
    with pytest.raises(PromptError, match="guide look holds 59"):
        decoder.add([1] * 59, how)
