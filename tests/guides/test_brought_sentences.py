"""Sentences that requests bring: one place among the guides holds other sentences in each row."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import byte_llama, byte_tokenizer
from trimtab.core import Chat, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import BaseMismatchError, OptionError, PromptError
from trimtab.guides.brought import SentencePlace, bringing
from trimtab.guides.prompt import PromptGuide
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.prompts import encode_prompt
from trimtab.testing import check_guide

BASE = TabularModel.random(9, seed=0)
ONE, TWO = PromptGuide("fab", separator=""), PromptGuide("fab", "gg", separator="")
PROMPTS: list[Any] = ["cd", [{"role": "user", "content": "c"}], [1, 5, 2], Chat([{"role": "user", "content": "dd"}])]
VETOES = TabularModel(
    lambda prefix: BASE.next_logprobs(prefix).masked_fill(BASE.next_logprobs((*prefix, 1)) < -2.5, -float("inf")), 9
)


@pytest.mark.parametrize("base", [BASE, VETOES], ids=["all tokens", "some forbidden"])
def test_the_laws_with_rows_of_either_kind(base: TabularModel) -> None:
    prompts = [bringing(prompt, {"s": guide}) for prompt, guide in zip(PROMPTS, [ONE, TWO, TWO, ONE], strict=True)]
    check_guide(SentencePlace("s"), base, prompts)


def test_the_laws_on_a_transformers_model() -> None:
    tokenizer = byte_tokenizer()
    model = HFModel(byte_llama(tokenizer, max_length=96), tokenizer)
    one, two = PromptGuide("Be glad."), PromptGuide("Be very glad.", "Be sad.")
    prompts = [bringing("Once", {"s": two}), bringing("Hi", {"s": one})]
    check_guide(SentencePlace("s"), model, prompts, num_steps=2)


def test_they_are_the_guides_that_the_same_sentences_make() -> None:
    """In one batch, each request with its own sentences and weights, prompts fed in pieces."""
    configured = Decoder(BASE, {"one": ONE, "two": TWO})
    places = Decoder(BASE, {"s": SentencePlace("s"), "t": SentencePlace("t")}, prefill_chunk=2)
    asked: list[tuple[dict[str, PromptGuide], dict[str, float], dict[str, float]]] = [
        ({"s": ONE}, {"s": 2.0}, {"one": 2.0, "two": 0.0}),
        ({"s": TWO}, {"s": -1.5}, {"one": 0.0, "two": -1.5}),
        ({"s": TWO, "t": ONE}, {"s": 1.0, "t": 0.5}, {"one": 0.5, "two": 1.0}),
        ({}, {}, {"one": 0.0, "two": 0.0}),
    ]
    how: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True}
    found = places.answers(
        [
            (bringing(prompt, sentences), SamplingParams(weights=weights, seed=seed, **how))
            for seed, (prompt, (sentences, weights, _)) in enumerate(zip(PROMPTS, asked, strict=True))
        ]
    )
    expected = configured.answers(
        [
            (prompt, SamplingParams(weights=weights, seed=seed, **how))
            for seed, (prompt, (_, _, weights)) in enumerate(zip(PROMPTS, asked, strict=True))
        ]
    )
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


def test_what_a_prompt_brings_changes_nothing_of_it() -> None:
    for prompt in PROMPTS:
        brought = bringing(prompt, {"s": ONE})
        assert encode_prompt(BASE, brought) == encode_prompt(BASE, prompt)
    chat = bringing(Chat(PROMPTS[1], {"thinking": True}, required=False), {"s": ONE})
    assert isinstance(chat, Chat)
    assert (chat.options, chat.required) == ({"thinking": True}, False)


def test_a_place_without_a_sentence_is_refused_when_it_is_run() -> None:
    decoder = Decoder(BASE, {"s": SentencePlace("s")})
    with pytest.raises(PromptError, match="brings no sentence"):
        decoder.generate("cd", weights={"s": 1.0})
    with pytest.raises(OptionError, match="takes no token back"):
        decoder.add(bringing("cd", {"s": ONE}), SamplingParams(weights={"s": 1.0}, draft="lookup"))
    decoder.add(bringing("cd", {"s": ONE}), SamplingParams(draft="lookup"))
    with pytest.raises(BaseMismatchError, match="bind"):
        SentencePlace("s").open()
