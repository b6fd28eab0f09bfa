"""What a policy says of a prompt's own tokens: `echo` with `logprobs`, `prompt_logprobs`, answers without a token."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from tests.serving.conftest import Running, Start, apart
from tests.serving.test_http import call
from trimtab.answers import TokenTrace
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue

PROMPT = "Olé, 🙂 is a face"
BODY: dict[str, Any] = {"model": "kinder", "prompt": PROMPT, "max_tokens": 4, "seed": 1}
WEIGHTS = {"up": 1.5, "down": 0.0}


def ask(server: Running, **changes: Any) -> dict[str, Any]:
    status, _, reply = call(server, "/v1/completions", {**BODY, **changes})
    assert status == 200, reply
    return dict(reply)


def scored(server: Running, ids: list[int], weights: dict[str, float], rivals: int = 0) -> list[TokenTrace]:
    """What the policy says of all tokens but the first, as an answer to it."""
    params = SamplingParams(
        weights=weights,
        forced=tuple(ids[1:]),
        max_new_tokens=len(ids) - 1,
        ignore_eos=True,
        trace=True,
        num_alternatives=rivals,
    )
    [answer] = apart(server).answers([(ids[:1], params)])
    assert answer.trace is not None
    return list(answer.trace)


@pytest.mark.parametrize("policy", ["mixed", "base"])
@pytest.mark.parametrize("form", ["text", "ids"])
def test_an_echoed_prompt_has_its_log_probabilities(server: Running, policy: str, form: str) -> None:
    tokenizer = server.service.catalogue.model.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(PROMPT)
    prompt = PROMPT if form == "text" else ids
    reply = ask(server, prompt=prompt, echo=True, logprobs=2, guidance={"logprobs": policy})
    plain = ask(server, prompt=prompt, logprobs=2, guidance={"logprobs": policy})
    [choice], [answer] = reply["choices"], plain["choices"]
    assert reply["usage"] == plain["usage"]
    assert choice["text"] == PROMPT + answer["text"]
    said, after = choice["logprobs"], answer["logprobs"]
    num = len(ids)
    assert said["tokens"] == [*map(tokenizer.token_text, ids), *after["tokens"]]
    assert said["token_logprobs"][:1] == said["top_logprobs"][:1] == [None]
    traces = scored(server, ids, WEIGHTS, 2)
    wanted = [getattr(trace.chosen, f"{policy}_logprob") for trace in traces]
    assert said["token_logprobs"][1:num] == pytest.approx(wanted, abs=1e-4)
    assert said["token_logprobs"][num:] == pytest.approx(after["token_logprobs"], abs=1e-4)
    assert all(2 <= len(best) <= 3 for best in said["top_logprobs"][1:])
    offsets = said["text_offset"]
    assert offsets == sorted(offsets)
    for index, (text, offset) in enumerate(zip(said["tokens"], offsets, strict=True)):
        if index < num and not text.startswith("bytes:"):
            assert choice["text"][offset : offset + len(text)] == text
    assert offsets[num:] == [len(PROMPT) + offset for offset in after["text_offset"]]


def test_a_prompt_is_scored_without_an_answer(server: Running) -> None:
    full = ask(server, echo=True, logprobs=1)
    reply = ask(server, echo=True, logprobs=1, max_tokens=0, n=2, prompt=[PROMPT, "A"])
    assert [choice["text"] for choice in reply["choices"]] == [PROMPT, PROMPT, "A", "A"]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert {choice["finish_reason"] for choice in reply["choices"]} == {"length"}
    first, second, third, _ = (choice["logprobs"] for choice in reply["choices"])
    assert first == second
    num = reply["usage"]["prompt_tokens"] - 1
    assert first["token_logprobs"][1:] == pytest.approx(
        full["choices"][0]["logprobs"]["token_logprobs"][1:num], abs=1e-4
    )
    assert third["token_logprobs"] == [None]
    assert reply["usage"]["completion_tokens"] == 0
    assert ask(server, echo=True, max_tokens=0)["choices"][0]["text"] == PROMPT


def test_vllms_prompt_logprobs(server: Running) -> None:
    tokenizer = server.service.catalogue.model.tokenizer
    assert tokenizer is not None
    [choice] = ask(server, prompt_logprobs=3)["choices"]
    assert choice["text"] == ask(server)["choices"][0]["text"]
    ids = tokenizer.encode(PROMPT)
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for token, said, trace in zip(ids[1:], others, scored(server, ids, WEIGHTS, 3), strict=True):
        assert next(iter(said)) == str(token)
        assert said[str(token)]["logprob"] == pytest.approx(trace.chosen.mixed_logprob, abs=1e-4)
        assert said[str(token)]["rank"] == trace.chosen.mixed_rank + 1
        assert said[str(token)]["decoded_token"] == tokenizer.token_text(token)
        assert 3 <= len(said) <= 4
        assert [one["rank"] for one in list(said.values())[1:4]][:1] in ([1], [2])
    chat = {"model": "kinder", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "prompt_logprobs": 0}
    reply = call(server, "/v1/chat/completions", chat)[2]
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
    assert all(len(said) == 1 for said in reply["prompt_logprobs"][1:])


def test_a_stream_begins_with_the_echoed_prompt(server: Running) -> None:
    whole = ask(server, echo=True)["choices"][0]["text"]
    events = call(server, "/v1/completions", {**BODY, "echo": True, "stream": True})[2].decode().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    assert chunks[0]["choices"][0]["text"] == PROMPT
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"max_tokens": 0}, "max_tokens", "nothing is asked for"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo", "which no stream does"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "which no stream does"),
        ({"prompt_logprobs": 10**6}, "prompt_logprobs", "prompt_logprobs is 1000000; this server takes at most 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "give a whole number of at least 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    server: Running, changes: dict[str, Any], param: str | None, words: str
) -> None:
    status, _, reply = call(server, "/v1/completions", {**BODY, **changes})
    assert (status, reply["error"]["param"]) == (400, param)
    assert words in reply["error"]["message"]


def test_a_guide_that_selects_says_nothing_of_given_tokens(start: Start, tiny_model: HFModel) -> None:
    torch.manual_seed(0)
    agent = Agent(AgentNetwork(tiny_model.hidden_size, 8).requires_grad_(False))
    catalogue = Catalogue(tiny_model, "tiny", {"agent": 0.0}, {})
    with start(engine=Decoder(tiny_model, {"agent": agent}), catalogue=catalogue) as server:
        body = {"model": "tiny", "prompt": "Hi", "max_tokens": 1, "echo": True, "logprobs": 0}
        assert call(server, "/v1/completions", body)[0] == 200
        status, _, reply = call(server, "/v1/completions", {**body, "guidance": {"weights": {"agent": 0.5}}})
        assert status == 400
        assert "echo asks what the policy says" in reply["error"]["message"]
        assert "Guide agent selects the token" in reply["error"]["message"]


def test_probabilities_of_a_scored_token_add_up(server: Running) -> None:
    """All alternatives of one token: a distribution."""
    ids = [40, 41]
    [trace] = scored(server, ids, WEIGHTS, 1000)
    assert math.fsum(math.exp(one.mixed_logprob) for one in trace.alternatives) == pytest.approx(1, abs=1e-4)
