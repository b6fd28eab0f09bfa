"""OpenAI's own client against our server."""

from __future__ import annotations

from dataclasses import replace

import openai
import pytest

from tests.serving.conftest import PRESETS, Running, apart

HELLO = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_chat(client: openai.OpenAI, server: Running) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HELLO, seed=3, max_tokens=12)
    [answer] = apart(server).generate([HELLO], seed=3, max_new_tokens=12, weights={"up": 0, "down": 0})
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
    [answer] = apart(server).generate([HELLO], seed=3, max_new_tokens=12, weights={"up": 1.5, "down": 0})
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
    [answer] = apart(server).generate(
        [HELLO], seed=3, max_new_tokens=6, weights={"up": 1.5, "down": 0}, trace=True, num_alternatives=3
    )
    told = reply.choices[0].logprobs
    assert told.model_extra["policy"] == policy
    for entry, step in zip(told.content, answer.trace, strict=True):
        assert entry.logprob == pytest.approx(
            getattr(step.chosen, f"{policy}_logprob"), abs=1e-4
        )  # float32, in other company
        assert [top.logprob for top in entry.top_logprobs] == sorted(
            (t.logprob for t in entry.top_logprobs), reverse=True
        )
        assert len(entry.top_logprobs) == 3


@pytest.mark.parametrize("text", ["🙂 is a face", "漢字とかな、👩‍👩‍👧 e\u0301", "no end: 🙂🙂🙂"])
@pytest.mark.parametrize("num_bytes_less", [0, 1])
def test_pieces_are_the_whole_for_emoji_and_cjk(
    client: openai.OpenAI, server: Running, text: str, num_bytes_less: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte is a token; the answer is given, cut inside the last character where a byte is left out."""
    tokenizer = server.service.catalogue.model.tokenizer
    script = tuple(tokenizer.encode(text))
    script = script[: len(script) - num_bytes_less]
    sound = server.batch.engine.add
    forced = {"max_new_tokens": len(script), "forced": script, "stop": ("never",)}
    monkeypatch.setattr(server.batch.engine, "add", lambda prompt, params: sound(prompt, replace(params, **forced)))
    how = {"model": "tiny", "messages": HELLO, "extra_body": {"guidance": {"explain": True}}}
    whole = client.chat.completions.create(**how).choices[0]
    pieces = [chunk.choices[0] for chunk in client.chat.completions.create(**how, stream=True)]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.message.content
    assert whole.message.content.startswith(text[:-1] if num_bytes_less else text)
    tokens = [token for piece in pieces for token in (piece.model_extra["guidance"] or {}).get("tokens", [])]
    assert [token["token_id"] for token in tokens] == list(script)
    assert tokens == whole.model_extra["guidance"]["tokens"]


def test_completions(client: openai.OpenAI, server: Running) -> None:
    how = {"model": "odd", "seed": 9, "max_tokens": 8, "logprobs": 2, "n": 2}
    reply = client.completions.create(prompt=["One", "Two"], **how)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    weights = {"up": 1.0, "down": -0.5}
    for index, prompt in enumerate(("One", "One", "Two", "Two")):
        [answer] = apart(server).generate(prompt, seed=9 + index, max_new_tokens=8, weights=weights, trace=True)
        choice = reply.choices[index]
        assert choice.text == answer.text
        told = [step.chosen.mixed_logprob for step in answer.trace if step.chosen.token_id != 2]
        assert choice.logprobs.token_logprobs == pytest.approx(told, abs=1e-4)
        named = zip(choice.logprobs.tokens, told, choice.logprobs.top_logprobs, strict=True)
        assert all(len(top) in (2, 3) and top[token] == pytest.approx(value, abs=1e-4) for token, value, top in named)
    ids = server.service.catalogue.model.tokenizer.encode("One")
    by_ids = client.completions.create(prompt=ids, model="odd", seed=9, max_tokens=8)
    assert by_ids.choices[0].text == reply.choices[0].text
    assert reply.usage.prompt_tokens == 2 * len(ids)


def test_a_stream_of_completions_and_its_usage(client: openai.OpenAI) -> None:
    how = {"model": "tiny", "prompt": "One", "seed": 2, "max_tokens": 7}
    whole = client.completions.create(**how)
    chunks = list(client.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_stop_string_is_left_out(client: openai.OpenAI) -> None:
    how = {"model": "tiny", "prompt": "One", "seed": 2, "max_tokens": 40}
    whole = client.completions.create(**how).choices[0].text
    cut = client.completions.create(**how, stop=whole[10:12]).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(whole[10:12])], "stop")


def test_explanations_are_the_traces(client: openai.OpenAI, server: Running) -> None:
    guidance = {"weights": {"up": 2.0}, "explain": True, "alternatives": 4}
    reply = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=5, seed=1, extra_body={"guidance": guidance}
    )
    told = reply.choices[0].model_extra["guidance"]
    assert (told["weights"], told["seed"]) == ({"up": 2.0, "down": 0.0}, 1)
    [answer] = apart(server).generate(
        [HELLO], seed=1, max_new_tokens=5, weights=told["weights"], trace=True, num_alternatives=4
    )
    for token, step in zip(told["tokens"], answer.trace, strict=True):
        assert token["token_id"] == step.chosen.token_id
        assert token["scores"] == pytest.approx(dict(step.chosen.guide_scores), abs=1e-4)
        assert (token["base_rank"], token["mixed_rank"]) == (step.chosen.base_rank, step.chosen.mixed_rank)
        assert token["kl"] == pytest.approx(step.kl, abs=1e-4)
        assert [rival["token_id"] for rival in token["alternatives"]] == [rival.token_id for rival in step.alternatives]


def test_without_a_seed_answers_differ_and_say_theirs(client: openai.OpenAI) -> None:
    how = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "extra_body": {"guidance": {}}}
    first, second = (client.chat.completions.create(**how).choices[0] for _ in range(2))
    assert first.message.content != second.message.content
    again = client.chat.completions.create(**how, seed=first.model_extra["guidance"]["seed"])
    assert again.choices[0].message.content == first.message.content


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Did you mean 'up'"):
        client.chat.completions.create(
            model="tiny", messages=HELLO, extra_body={"guidance": {"weights": {"upp": 1}}}, stream=True
        )
    with pytest.raises(openai.NotFoundError, match="kinder"):
        client.chat.completions.create(model="nothing", messages=HELLO)
