"""Over the wire, besides good requests: refusals in OpenAI's shape, limits, keys, headers, clients that leave."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from tests.serving.conftest import Running, Start, apart
from trimtab.decoding.decoder import Decoder
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue
from trimtab.serving.limits import Limits
from trimtab.serving.message_schema import Message
from trimtab.serving.schema import ChatRequest, CompletionRequest
from trimtab.serving.wire_schema import Wire

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello."}],
    "max_tokens": 4,
    "seed": 1,
}


def call(
    server: Running, path: str, body: Any = None, *, headers: dict[str, str] | None = None, raw: bytes | None = None
) -> tuple[int, dict[str, str], Any]:
    """(status, headers, body) of a request; JSON is read."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    connection.request(
        "GET" if data is None else "POST", path, data, {"content-type": "application/json", **(headers or {})}
    )
    reply = connection.getresponse()
    content = reply.read()
    found = {key.lower(): value for key, value in reply.getheaders()}
    return reply.status, found, json.loads(content) if "json" in found.get("content-type", "") else content


def chat(**changes: Any) -> dict[str, Any]:
    return {**CHAT, **changes}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key of guidance": (chat(guidance={"wieghts": {"up": 1}}), "Did you mean 'weights'?"),
    "an unknown guide": (chat(guidance={"weights": {"upp": 1}}), "Did you mean 'up'?"),
    "a weight that is text": (chat(guidance={"weights": {"up": "1"}}), "guidance.weights.up"),
    "a huge weight": (chat(guidance={"weights": {"up": 1e9}}), "at most 100"),
    "no messages": (chat(messages=[]), "messages"),
    "a picture": (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages.0.content"),
    "functions": (chat(functions=[{"name": "f"}]), "functions is not supported"),
    "a response format": (chat(response_format={"type": "xml"}), "response_format.type"),
    "a response format without its schema": (chat(response_format={"type": "json_schema"}), "goes with the type"),
    "a schema without a value": (chat(guided_json={"type": "integer", "minimum": 2, "maximum": 1}), "guided_json: The"),
    "a schema without end": (chat(guided_json={"$ref": "#"}), "without end"),
    "an expression that is none": (chat(guided_regex="["), "guided_regex: The regular expression cannot be used"),
    "two forms": (chat(guided_regex="a", guided_choice=["a"]), "guided_regex and guided_choice each say"),
    "no choice": (chat(guided_choice=[]), "at least one text"),
    "a bias of no token": (chat(logit_bias={"x": 1}), "logit_bias: has the key 'x'; give token ids"),
    "a bias of a token that is not there": (chat(logit_bias={"999": 1}), "logit_bias names token 999"),
    "a bias that is too large": (chat(logit_bias={"5": 101}), "logit_bias"),
    "a penalty that is too large": (chat(presence_penalty=2.5), "presence_penalty is 2.5; give a number of at"),
    "a stop token that is none": (chat(stop_token_ids=[-1]), "stop_token_ids.0"),
    "more tokens at least than at most": (chat(min_tokens=5), "min_tokens is 5, and max_tokens 4"),
    "a negative seed": (chat(seed=-1), "seed is -1; give a whole number of at least 0"),
    "a seed that has no successor": (chat(seed=2**63 - 1, n=2), "seed + n − 1, is 9223372036854775808"),
    "a role of nobody's": (chat(messages=[{"role": "bot", "content": "Hi"}]), 'messages.0.role is "bot"; give'),
    "an unknown field": (chat(frequency_penality=1), "Did you mean 'frequency_penalty'"),
    "a field of nobody's": (chat(foo=1), "Unknown field 'foo'"),
    "a field of vLLM's": (chat(bad_words=["x"]), "bad_words is not supported by this server"),
    "a field of completions": (chat(echo=True), "echo is not supported by this server"),
    "another store": (chat(store=True), "store is not supported"),
    "an unknown key of a message": (chat(messages=[{"role": "user", "content": "Hi", "to": "x"}]), "messages.0: Unk"),
    "an unknown option of streams": (chat(stream_options={"usage": True}), "stream_options: Unknown field 'usage'"),
    "an unknown key of a form": (chat(response_format={"type": "text", "foo": 1}), "response_format.foo: there is no"),
    "a negative temperature": (chat(temperature=-1), "temperature"),
    "no tokens": (chat(max_tokens=0), "max_tokens"),
    "too many tokens": (chat(max_tokens=10**9), "at most 2048"),
    "too many answers": (chat(n=1000), "at most 8"),
    "too many top log-probabilities": (chat(logprobs=True, top_logprobs=10**6), "at most 20"),
    "top_logprobs alone": (chat(top_logprobs=2), "logprobs: true"),
    "thousands of stop strings": (chat(stop=[f"s{i}" for i in range(5000)]), "at most 16"),
    "an empty stop string": (chat(stop=["a", ""]), "stop"),
    "a lone surrogate": (chat(messages=[{"role": "user", "content": "\ud800"}]), "messages.0.content"),
    "a lone surrogate for a guide": (chat(guidance={"weights": {"\ud800": 1}}), "lone surrogate"),
    "a lone surrogate for a key": (chat(guidance={"\ud800": 1}), "guidance"),
    "a prompt that is too long": (chat(messages=[{"role": "user", "content": "x" * 5000}]), "at most"),
    "a list": ([1, 2], "The body is a list of 2; give an object."),  # type: ignore[dict-item]
    "nothing": ({}, "is missing; give it"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_request_is_a_400_that_says_why(server: Running, what: str) -> None:
    body, reason = REFUSED[what]
    status, _, reply = call(server, "/v1/chat/completions", body)
    assert status == 400
    assert reason in reply["error"]["message"]
    assert reply["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe\x00", b"null", b'{"model": NaN}', b"[" * 100_000, json.dumps(CHAT).encode()[:-1]]
)
def test_garbage_is_a_400(server: Running, raw: bytes) -> None:
    assert call(server, "/v1/chat/completions", raw=raw)[0] == 400


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_weight_that_is_no_number_is_a_400(server: Running, value: str) -> None:
    raw = json.dumps(chat(guidance={"weights": {"up": 7}})).replace("7", value).encode()
    status, _, reply = call(server, "/v1/chat/completions", raw=raw)
    assert status == 400
    assert "guidance.weights.up" in reply["error"]["message"]


def neutral_fields(kind: type[Wire]) -> dict[str, Any]:
    """Every field that is ignored, with something in it, and every one that is refused, asking for nothing."""
    return {**dict.fromkeys(kind.ignored, "auto"), **{name: one[0] for name, one in kind.refused.items() if one}}


def test_what_is_ignored_or_asks_for_nothing_changes_no_answer(server: Running) -> None:
    body = chat(**neutral_fields(ChatRequest), presence_penalty=0, foo=None)
    body["messages"] = [{**body["messages"][0], **neutral_fields(Message)}]
    status, _, reply = call(server, "/v1/chat/completions", body)
    assert (status, reply["choices"][0]["finish_reason"]) == (200, "length")
    assert reply["choices"] == call(server, "/v1/chat/completions", CHAT)[2]["choices"]
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 4, "seed": 1}
    status, _, reply = call(server, "/v1/completions", {**body, **neutral_fields(CompletionRequest)})
    assert (status, reply["choices"]) == (200, call(server, "/v1/completions", body)[2]["choices"])


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_what_is_refused_is_named(server: Running, kind: type[Wire]) -> None:
    path, body = (
        ("chat/completions", CHAT) if kind is ChatRequest else ("completions", {"model": "tiny", "prompt": "a"})
    )
    for name in kind.refused:
        status, _, reply = call(server, f"/v1/{path}", {**body, name: "something"})
        error = reply["error"]
        assert (status, error["param"]) == (400, name)
        assert error["message"] == f"{name} is not supported by this server; leave it out."
        assert name not in kind.model_fields
        assert name not in kind.ignored


def test_a_key_that_is_given_twice_is_refused(server: Running) -> None:
    for raw, key in (
        (json.dumps(CHAT)[:-1] + ', "seed": 2}', "seed"),
        (json.dumps(CHAT).replace('"role": "user"', '"role": "system", "role": "user"'), "role"),
    ):
        status, _, reply = call(server, "/v1/chat/completions", raw=raw.encode())
        assert (status, reply["error"]["param"]) == (400, key)
        assert f"has the key '{key}' twice" in reply["error"]["message"]


SAMPLED: dict[str, tuple[Any, dict[str, Any]]] = {
    "presence_penalty": (1.5, {"presence_penalty": 1.5}),
    "frequency_penalty": (-1.5, {"frequency_penalty": -1.5}),
    "repetition_penalty": (1.7, {"repetition_penalty": 1.7}),
    "logit_bias": ({"70": 100, "71": 99.5}, {"logit_bias": {70: 100, 71: 99.5}}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "min_tokens": (20, {"min_tokens": 20}),
    "stop_token_ids": (list(range(60, 160)), {"stop_token_ids": range(60, 160)}),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_field_of_sampling_is_what_it_is_in_python(server: Running, name: str) -> None:
    value, how = SAMPLED[name]
    (end,) = server.service.engine.model.eos_ids
    few = {70: 6.0, 71: 6.0, 72: 6.0, 73: 6.0}  # so that tokens come again
    if name in ("ignore_eos", "min_tokens"):
        few[end] = 6.0
    body = {
        "model": "kinder",
        "prompt": "Hello",
        "max_tokens": 24,
        "seed": 3,
        "logit_bias": {str(token): bias for token, bias in few.items()},
    }
    reply = call(server, "/v1/completions", {**body, name: value})[2]
    options = {"weights": {"up": 1.5, "down": 0.0}, "max_new_tokens": 24, "seed": 3, "logit_bias": few}
    [answer] = apart(server).generate("Hello", **{**options, **how})
    assert reply["choices"][0]["text"] == answer.text
    assert reply["usage"]["completion_tokens"] == len(answer.token_ids)
    [plain] = apart(server).generate("Hello", **options)
    assert plain.token_ids != answer.token_ids


def test_an_unknown_model_is_a_404(server: Running) -> None:
    status, _, reply = call(server, "/v1/chat/completions", chat(model="gpt-5"))
    assert (status, reply["error"]["code"]) == (404, "model_not_found")
    assert "kinder" in reply["error"]["message"]
    assert call(server, "/v1/models/gpt-5")[0] == 404
    assert call(server, "/v1/models/kinder")[2]["guidance"] == {"up": 1.5}
    assert call(server, "/v2/nothing")[2]["error"]["type"] == "invalid_request_error"
    assert call(server, "/v1/chat/completions")[0] == 405


def test_a_body_that_is_too_large_is_a_413(start: Start) -> None:
    with start(Limits(max_body_bytes=2000)) as server:
        big = json.dumps(chat(messages=[{"role": "user", "content": "x" * 10_000}])).encode()
        assert call(server, "/v1/chat/completions", raw=big)[0] == 413
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
        pieces = (big[i : i + 500] for i in range(0, len(big), 500))  # no length is told beforehand
        connection.request("POST", "/v1/chat/completions", pieces, {"content-type": "application/json"})
        assert connection.getresponse().status == 413


def test_keys(start: Start) -> None:
    with start(keys=["first", "second"]) as server:
        for path in ("/v1/models", "/v1/guides", "/metrics", "/v1/nothing"):
            assert call(server, path)[0] == 401, path
            assert call(server, path, headers={"authorization": "Bearer third"})[0] == 401, path
            assert call(server, path, headers={"authorization": "Basic first"})[0] == 401, path
        for key in ("first", "second"):
            assert call(server, "/v1/models", headers={"authorization": f"Bearer {key}"})[0] == 200
        assert [call(server, path)[0] for path in ("/health", "/ready", "/")] == [200, 200, 200]


def test_what_is_refused_at_the_door_is_counted(start: Start) -> None:
    with start(Limits(max_body_bytes=1000), keys=["first"]) as server:
        call(server, "/v1/models")
        call(server, "/v1/completions", {"prompt": "a" * 2000}, headers={"authorization": "Bearer first"})
        page = call(server, "/metrics", headers={"authorization": "Bearer first"})[2].decode()
    assert 'trimtab_http_requests_total{route="other",status="401"} 1.0' in page
    assert 'trimtab_http_requests_total{route="other",status="413"} 1.0' in page


def test_a_full_queue_is_a_429_with_a_time_to_come_back(start: Start) -> None:
    with start(Limits(max_rows=1, max_queue=0)) as server:
        status, headers, reply = call(server, "/v1/chat/completions", chat(n=2))
        assert (status, reply["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
        assert call(server, "/v1/chat/completions", CHAT)[0] == 200


def test_headers_keep_others_out(server: Running) -> None:
    for path in ("/", "/v1/models", "/nothing"):
        headers = call(server, path)[1]
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in call(server, path, headers={"origin": "http://evil.example"})[1]


def test_a_page_is_never_half_an_old_one(server: Running) -> None:
    for path in ("/", "/playground/main.js", "/playground/page.css"):
        assert call(server, path)[1]["cache-control"] == "no-cache", path
    assert call(server, "/playground/main.js")[1]["content-type"] == "text/javascript; charset=utf-8"


def test_an_origin_that_was_allowed_may_call(start: Start) -> None:
    with start(origins=["http://page.example"]) as server:
        headers = call(server, "/v1/models", headers={"origin": "http://page.example"})[1]
        assert headers["access-control-allow-origin"] == "http://page.example"


def test_measures(server: Running) -> None:
    call(server, "/v1/chat/completions", chat(guidance={"weights": {"up": 1}}))
    page = call(server, "/metrics")[2].decode()
    for name in (
        'trimtab_http_requests_total{route="/v1/chat/completions",status="200"}',
        'trimtab_guide_forwards_total{guide="up"}',
        "trimtab_generated_tokens_total",
        "trimtab_queue_length",
        "trimtab_batch_size",
        "trimtab_time_to_first_token_seconds_bucket",
        "trimtab_time_between_tokens_seconds_bucket",
    ):
        assert name in page, name


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(start: Start, stream: bool) -> None:
    with start(Limits(max_rows=2, max_new_tokens=100_000)) as server:
        body = json.dumps(chat(max_tokens=1900, stream=stream, n=2, guidance={"weights": {"up": 1}})).encode()
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port)) as client:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            _until(lambda: server.batch.engine.num_running == 2)
        before = time.monotonic()
        _until(lambda: server.batch.num_open == 0)
        assert server.batch.engine.num_rows == 0
        assert time.monotonic() - before < 5
        assert call(server, "/v1/chat/completions", CHAT)[0] == 200


def test_a_dead_generation_thread_is_red(start: Start) -> None:
    deaths: list[BaseException] = []
    with start(on_death=deaths.append) as server:
        assert call(server, "/health")[0] == 200
        server.batch.engine.step = _fail  # type: ignore[method-assign]
        status, _, reply = call(server, "/v1/chat/completions", CHAT)
        assert (status, reply["error"]["code"]) == (503, "stopping")
        assert call(server, "/health")[0] == call(server, "/ready")[0] == 503
        assert len(deaths) == 1


def test_an_error_in_a_stream_is_an_event_and_not_the_end(start: Start) -> None:
    with start() as server:
        sound, left = server.batch.engine.step, [3]

        def fail_later() -> Any:
            left[0] -= 1
            return sound() if left[0] else _fail()

        server.batch.engine.step = fail_later  # type: ignore[method-assign]
        status, _, reply = call(server, "/v1/chat/completions", chat(stream=True, max_tokens=50))
        assert status == 200
        events = [line for line in reply.decode().splitlines() if line]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "stopping"
        assert "[DONE]" not in reply.decode()


def _fail() -> Any:
    raise RuntimeError("broken on purpose")


def _until(what: Any) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def test_an_agent_is_a_guide_like_any_other(start: Start, tiny_model: HFModel, guides: dict[str, Any]) -> None:
    torch.manual_seed(3)
    network = AgentNetwork(32, 16)
    torch.nn.init.normal_(network.output_linear.weight, std=3.0)
    decoder = Decoder(tiny_model, {"up": guides["up"], "agent": Agent(network)})
    weights = {"up": 1.0, "agent": 0.9}
    with start(engine=decoder, catalogue=Catalogue(tiny_model, "tiny", dict.fromkeys(weights, 0.0), {})) as server:
        listed = {one["id"]: (one["selects"], one["accepts"]) for one in call(server, "/v1/guides")[2]["data"]}
        assert listed == {"up": (False, False), "agent": (True, True)}
        reply = call(server, "/v1/chat/completions", chat(guidance={"weights": weights, "explain": True}))[2]
        told = call(server, "/v1/chat/completions", chat(guidance={"weights": {"agent": -0.5}}))
        gated = {"weights": weights, "explain": True, "gates": {"agent": "significance:1000000000"}}
        through = call(server, "/v1/chat/completions", chat(guidance=gated))[2]["choices"][0]
        tilts = {"weights": weights, "gates": {"up": "significance:1"}}
        refused = call(server, "/v1/chat/completions", chat(guidance=tilts))
    assert told[0] == 400
    assert "acceptance threshold" in told[2]["error"]["message"]
    [answer] = decoder.generate([CHAT["messages"]], weights=weights, max_new_tokens=4, seed=1)
    assert reply["choices"][0]["message"]["content"] == answer.text
    choices = [token["choice"] for token in reply["choices"][0]["guidance"]["tokens"]]
    assert [choice["guide"] for choice in choices] == ["agent"] * len(answer.token_ids)
    assert any(not trial["accepted"] for choice in choices for trial in choice["trials"])
    assert "significance" not in choices[0]
    gate = {"agent": "significance:1000000000"}
    [answer] = decoder.generate([CHAT["messages"]], weights=weights, max_new_tokens=4, seed=1, gates=gate)
    assert through["message"]["content"] == answer.text
    first, *others = (token["choice"] for token in through["guidance"]["tokens"])
    assert (first["reason"] != "insignificant", first["least_significance"]) == (True, 0.0)
    assert all(choice["reason"] == "insignificant" for choice in others)
    assert all(0 <= choice["significance"] < choice["least_significance"] for choice in others)
    assert (refused[0], refused[2]["error"]["param"]) == (400, "guidance.gates.up")
    assert "guide up significance:1, and it tilts" in refused[2]["error"]["message"]
