"""Log-probabilities on the wire: their bytes put together are the text, and no entry hides another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.tiny import byte_llama
from tests.tiny_tokenizers import made
from trimtab import Decoder, SamplingParams
from trimtab.answers import Step
from trimtab.models.hf import HFModel
from trimtab.serving.wire import Style, Writer

NAMES = ("byte-level", "llama", "wordpiece", "words' ends within")
RIVALS = 5


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> HFModel:
    tokenizer = made(request.param)
    tokenizer.pad_token = tokenizer.eos_token
    return HFModel(byte_llama(tokenizer, max_length=64), tokenizer)


def steps(model: HFModel, seed: int, **how: Any) -> list[Step]:
    """An answer of random tokens, special ones and parts of characters among them."""
    decoder, found = Decoder(model), []
    params = SamplingParams(max_new_tokens=24, seed=seed, trace=True, num_alternatives=RIVALS, temperature=3.0, **how)
    decoder.add([1, 5], params)
    while decoder.num_running or decoder.num_waiting:
        found += decoder.step()
    return found


def written(model: HFModel, found: list[Step], *, chat: bool) -> Iterator[Mapping[str, Any]]:
    """The choice of a whole reply, and a stream's put together."""
    style = Style(model.tokenizer, chat, RIVALS)
    whole, streamed = (Writer(style, 0, {}, 1) for _ in range(2))
    for step in found:
        whole.take(step)
    yield whole.whole()
    pieces = [choice for step in found if (choice := streamed.piece(step)) is not None]
    lists = [piece["logprobs"] for piece in pieces]
    keys = [key for key, value in lists[0].items() if isinstance(value, list)]
    joined = {**lists[0], **{key: [one for each in lists for one in each[key]] for key in keys}}
    text = "".join(piece["delta"]["content"] if chat else piece["text"] for piece in pieces)
    body = {"message": {"content": text}} if chat else {"text": text}
    yield {**body, "logprobs": joined}


@pytest.mark.parametrize("seed", range(3))
def test_the_bytes_of_a_chat_put_together_are_its_text(model: HFModel, seed: int) -> None:
    found = steps(model, seed)
    listed = [step for step in found if step.finish_reason != "eos"]
    for choice in written(model, found, chat=True):
        content = choice["logprobs"]["content"]
        assert b"".join(bytes(one["bytes"]) for one in content).decode() == choice["message"]["content"]
        assert [one["token"] for one in content] == [model.tokenizer.token_text(step.token_id) for step in listed]
        assert all(len(one["top_logprobs"]) == RIVALS for one in content)


@pytest.mark.parametrize("seed", range(3))
def test_a_stop_string_has_no_bytes(model: HFModel, seed: int) -> None:
    text = "".join(step.text for step in steps(model, seed))
    words = re.findall("[^\ufffd]{1,2}", text) or ["\ufffd"]
    stop = words[len(words) // 2]
    found = steps(model, seed, stop=(stop,))
    assert found[-1].finish_reason == "stop"
    for choice in written(model, found, chat=True):
        content = choice["logprobs"]["content"]
        assert len(content) == len(found)
        assert b"".join(bytes(one["bytes"]) for one in content).decode() == choice["message"]["content"]
        assert stop not in choice["message"]["content"]


@pytest.mark.parametrize("seed", range(3))
def test_top_log_probabilities_of_a_completion_lose_no_entry(model: HFModel, seed: int) -> None:
    found = steps(model, seed)
    whole, streamed = written(model, found, chat=False)
    assert whole["logprobs"] == streamed["logprobs"]
    logs, text = whole["logprobs"], whole["text"]
    traces = [step.trace for step in found if step.trace and step.finish_reason != "eos"]
    rows = zip(logs["tokens"], logs["token_logprobs"], logs["top_logprobs"], traces, strict=True)
    for token, value, top, trace in rows:
        best = sorted((one.mixed_logprob for one in trace.alternatives), reverse=True)[:RIVALS]
        assert top[token] == value
        assert sorted(top.values(), reverse=True)[:RIVALS] == best
        assert len(top) == RIVALS + (value < best[-1])
    added = [piece for step in found for piece in step.pieces]
    before = [b"".join(added[:index]).decode(errors="ignore") for index in range(len(traces))]
    assert logs["text_offset"] == [len(start) for start in before]
    assert all(text.startswith(start) for start in before)
