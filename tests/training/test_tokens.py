"""Pairs as ids: one BOS, the prompt as decoding sees it, the response with its end, cuts counted."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.errors import CheckpointError, DataError, OptionError
from trimtab.models.hf import HFTokenizer
from trimtab.training.pairs.formats import PreferencePair
from trimtab.training.pairs.tokens import TokenData, tokenise

from .conftest import byte_tokenizer

BOS, EOS, END = 1, 2, 3
EOS_IDS = frozenset({EOS, END})


def ids(tokenizer: HFTokenizer, pair: PreferencePair, max_length: int = 64, max_prompt_length: int = 40) -> TokenData:
    return tokenise([pair], tokenizer, eos_ids=EOS_IDS, max_length=max_length, max_prompt_length=max_prompt_length)


def chat(text: str, chosen: str = "yes", rejected: str = "no") -> PreferencePair:
    return PreferencePair(({"role": "user", "content": text},), chosen, rejected)


def test_a_chat_prompt_is_what_decoding_would_see(tokenizer: HFTokenizer) -> None:
    pair = ids(tokenizer, chat("hi")).pairs[0]
    assert list(pair.prompt_ids) == tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert tokenizer.hf.decode(pair.prompt_ids) == "<s><u>hi\n<a>"


def test_a_sequence_has_exactly_one_bos(tokenizer: HFTokenizer) -> None:
    for pair in (chat("hi"), PreferencePair("raw", " yes", " no")):
        found = ids(tokenizer, pair).pairs[0]
        for response in (found.chosen_ids, found.rejected_ids):
            assert (*found.prompt_ids, *response).count(BOS) == 1
        assert found.prompt_ids[0] == BOS


def test_a_response_is_its_text_and_the_token_that_ends_a_turn(tokenizer: HFTokenizer) -> None:
    pair = ids(tokenizer, chat("hi")).pairs[0]
    assert tokenizer.hf.decode(pair.chosen_ids) == "yes<end>", "not the line break that the template adds"
    assert tokenizer.hf.decode(pair.rejected_ids) == "no<end>"


def test_raw_text_ends_with_the_end_of_sequence(tokenizer: HFTokenizer) -> None:
    pair = ids(tokenizer, PreferencePair("Q:", " yes", " no")).pairs[0]
    assert tokenizer.hf.decode(pair.prompt_ids) == "<s>Q:"
    assert tokenizer.hf.decode(pair.chosen_ids) == " yes</s>"


def test_a_template_that_writes_no_end_falls_back_on_the_tokenizer() -> None:
    plain = byte_tokenizer()
    plain.chat_template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    pair = ids(HFTokenizer(plain), chat("hi")).pairs[0]
    assert pair.chosen_ids[-1] == EOS


def test_no_end_at_all_is_refused() -> None:
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(CheckpointError, match="names an end-of-sequence token"):
        tokenise([chat("x")], HFTokenizer(endless), eos_ids=frozenset(), max_length=64, max_prompt_length=32)


def test_what_fits_is_not_cut(tokenizer: HFTokenizer) -> None:
    prompt = len(ids(tokenizer, chat("hi")).pairs[0].prompt_ids)
    data = ids(tokenizer, chat("hi", "12345", "1"), max_length=prompt + 6, max_prompt_length=prompt)
    assert (data.num_prompts_cut, data.num_responses_cut, data.num_dropped) == (0, 0, 0)
    assert data.pairs[0].chosen_ids[-1] == END


def test_a_long_prompt_loses_its_beginning_but_not_its_bos(tokenizer: HFTokenizer) -> None:
    data = ids(tokenizer, chat("abcdefgh"), max_prompt_length=6)
    pair = data.pairs[0]
    assert tokenizer.hf.decode(pair.prompt_ids) == "<s>fgh\n<a>"
    assert (data.num_prompts_cut, data.num_responses_cut) == (1, 0)


def test_a_long_response_loses_its_end(tokenizer: HFTokenizer) -> None:
    prompt = len(ids(tokenizer, chat("hi")).pairs[0].prompt_ids)
    data = ids(tokenizer, chat("hi", "123456789", "987654321"), max_length=prompt + 4, max_prompt_length=prompt)
    pair = data.pairs[0]
    assert [tokenizer.hf.decode(side) for side in (pair.chosen_ids, pair.rejected_ids)] == ["1234", "9876"]
    assert data.num_responses_cut == 2
    assert pair.length == prompt + 4


def test_cuts_are_reported(tokenizer: HFTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="trimtab"):
        ids(tokenizer, chat("abcdefgh"), max_prompt_length=6)
    assert "1 prompts cut from the left to 6 tokens" in caplog.text


def test_a_pair_whose_responses_become_the_same_is_dropped_and_counted(tokenizer: HFTokenizer) -> None:
    pairs = [chat("hi", "same but left", "same but right"), chat("hi", "left", "right")]
    data = tokenise(pairs, tokenizer, eos_ids=EOS_IDS, max_length=12, max_prompt_length=8)
    assert (len(data.pairs), data.num_dropped) == (1, 1)
    with pytest.raises(DataError, match="became the same"):
        tokenise(pairs[:1], tokenizer, eos_ids=EOS_IDS, max_length=12, max_prompt_length=8)


def test_no_room_for_a_response_is_refused(tokenizer: HFTokenizer) -> None:
    with pytest.raises(OptionError, match="leaves no room"):
        ids(tokenizer, chat("hi"), max_length=8, max_prompt_length=8)


def test_tokens_are_counted(tokenizer: HFTokenizer) -> None:
    data = ids(tokenizer, chat("hi", "yes", "no"))
    prompt = len(data.pairs[0].prompt_ids)
    assert data.num_tokens == 2 * prompt + 4 + 3


def test_the_callers_messages_are_left_alone(tokenizer: HFTokenizer) -> None:
    message: dict[str, Any] = {"role": "user", "content": "hi"}
    ids(tokenizer, PreferencePair((message,), "yes", "no"))
    assert message == {"role": "user", "content": "hi"}
