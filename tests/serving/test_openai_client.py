"""OpenAI's own client against our server."""

from __future__ import annotations

import openai
import pytest

from tests.serving.conftest import PRESETS, Running

HELLO = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_chat(client: openai.OpenAI, server: Running) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HELLO, seed=3, max_tokens=12)
    [answer] = server.service.decoder.generate([HELLO], seed=3, max_new_tokens=12, weights={"up": 0, "down": 0})
    assert reply.choices[0].message.content == answer.text
    assert reply.choices[0].finish_reason == ("stop" if answer.finish_reason == "eos" else "length")
    assert reply.usage.completion_tokens == len(answer.token_ids)
    assert reply.usage.prompt_tokens == len(answer.prompt_ids)


def test_a_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    how = {"model": "tiny", "messages": HELLO, "seed": 5, "max_tokens": 20, "n": 2}
    whole = client.chat.completions.create(**how)
    texts = ["", ""]
    for chunk in client.chat.completions.create(**how, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]


def test_guidance_and_presets(client: openai.OpenAI, server: Running) -> None:
    weights = {"up": 1.5}
    asked = client.chat.completions.create(
        model="tiny", messages=HELLO, seed=3, max_tokens=12, extra_body={"guidance": {"weights": weights}}
    )
    preset = client.chat.completions.create(model="kinder", messages=HELLO, seed=3, max_tokens=12)
    [answer] = server.service.decoder.generate([HELLO], seed=3, max_new_tokens=12, weights={"up": 1.5, "down": 0})
    assert asked.choices[0].message.content == preset.choices[0].message.content == answer.text
    assert {model.id for model in client.models.list()} == {"tiny", *PRESETS}


@pytest.mark.parametrize("policy", ["mixed", "base"])
def test_logprobs_say_whose_they_are(client: openai.OpenAI, server: Running, policy: str) -> None:
    reply = client.chat.completions.create(
        model="kinder",
        messages=HELLO,
        seed=3,
        max_tokens=6,
        logprobs=True,
        top_logprobs=3,
        extra_body={"guidance": {"logprobs": policy}},
    )
    [answer] = server.service.decoder.generate(
        [HELLO], seed=3, max_new_tokens=6, weights={"up": 1.5, "down": 0}, trace=True, num_alternatives=3
    )
    told = reply.choices[0].logprobs
    assert told.model_extra["policy"] == policy
    for entry, step in zip(told.content, answer.trace, strict=True):
        assert entry.logprob == pytest.approx(getattr(step.chosen, f"{policy}_logprob"), abs=1e-5)
        assert [top.logprob for top in entry.top_logprobs] == sorted(
            (t.logprob for t in entry.top_logprobs), reverse=True
        )
        assert len(entry.top_logprobs) == 3
