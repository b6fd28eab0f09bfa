"""Random requests, byte by byte: nulls, wrong types, methods, slashes, types, encodings, names, half of anything.

Whatever is sent: a whole reply in the shape that its status has, no error of the server, nothing in its log, and the
next request of somebody else answered.
"""

from __future__ import annotations

import gzip
import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server_process import until
from tests.serving.conftest import Running, Start
from tests.serving.raw import Reply, connect, reply_of, request
from trimtab.serving.limits import Limits

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Hello é漢."},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
    ],
    "max_tokens": 3,
    "n": 2,
    "stop": ["x"],
    "logprobs": True,
    "top_logprobs": 2,
    "stream": False,
    "stream_options": {"include_usage": True},
    "guidance": {"weights": {"up": 1.0}, "explain": True, "alternatives": 2, "plausibility": 0.1},
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 3,
    "tools": None,
    "logit_bias": {},
}
SHARED = {key: value for key, value in CHAT.items() if key not in ("messages", "logprobs", "top_logprobs")}
COMPLETION: dict[str, Any] = {**SHARED, "prompt": ["Hello", "Hello"], "n": 1, "logprobs": 2, "best_of": 1, "echo": None}
ODD: tuple[Any, ...] = (
    *(None, None, None, True, False, 0, 1, -1, 2.5, 1e308, 10**30, "", "x", "a" * 5000, "\ud800", "\x00", [], {}),
    *([None], [[]], [1], [1, "a"], {"a": None}, [{}], [[1], ["a"]], [0] * 3000, {"type": "image_url"}),
)
METHODS = ("POST",) * 12 + ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "post")
PATHS = (
    *("/", "/health", "/ready", "/metrics", "/openapi.json", "/v1/models", "/v1/models/tiny", "/v1/models/%ff/../x"),
    *("/v1/guides", "/playground", "/playground/", "/playground/main.js", "/playground/%2e%2e/app.py"),
    *("/playground/%00", "/v1", "//", "/v1//models", "/%", "/\xc3\xa9", "*", "http://evil/", "/a" * 500, "/?a=%ff#b"),
)
HEADERS: tuple[dict[str, str], ...] = (
    *({},) * 20,
    {"content-type": "text/plain"},
    {"content-type": "application/json; charset=latin-1"},
    {"content-type": "\xff"},
    {"content-encoding": "gzip"},
    {"expect": "100-continue"},
    {"authorization": "Bearer \xe9"},
    {"origin": "null"},
    {"upgrade": "websocket", "connection": "upgrade"},
    {"accept-encoding": "gzip", "range": "bytes=0-1"},
    {"if-none-match": "*"},
    {"x": "y" * 9000},
    {"transfer-encoding": "chunked"},
    {"content-length": "5"},
    {"host": "evil.example"},
)
OURS = ("function-", "pydantic", "Traceback", "is-instance", "object at 0x", "trimtab.", "list[", "dict[")


@pytest.fixture(scope="module")
def fuzzed(start: Start) -> Iterator[Running]:
    limits = Limits(max_rows=4, max_new_tokens=8, default_new_tokens=3, max_prompt_tokens=600, head_s=0.3, body_s=0.3)
    with start(limits, hosts=["box.lan"], origins=["https://page.example"]) as server:
        yield server


def mutated(value: Any, draw: random.Random) -> Any:
    """A value with something odd in one of its places."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
        return draw.choice(ODD)
    if isinstance(value, list):
        place: Any = draw.randrange(len(value))
        return [*value[:place], mutated(value[place], draw), *value[place + 1 :]]
    place = draw.choice(list(value))
    kind = draw.random()
    if kind < 0.1:
        return {key: item for key, item in value.items() if key != place}
    if kind < 0.15:
        return {**value, place + "x": 1}
    return {**value, place: mutated(value[place], draw)}


def drawn(draw: random.Random) -> tuple[str, bytes]:
    """A method and the bytes of a request, which may end too early."""
    route, sample = draw.choice((("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        sample = mutated(sample, draw)
    body = json.dumps(sample).encode()
    spoil = draw.random()
    if spoil < 0.05:
        body = gzip.compress(body)
    elif spoil < 0.1:
        body = body[: draw.randrange(len(body) + 1)]
    elif spoil < 0.15:
        body = bytes(draw.randrange(256) for _ in range(50))
    elif spoil < 0.2:
        body = json.dumps(sample, ensure_ascii=False).encode("utf-16", "surrogatepass")
    method = draw.choice(METHODS)
    path = (route if draw.random() < 0.8 else draw.choice(PATHS)) + draw.choice(("",) * 8 + ("/", "//", "?", "/x"))
    sent = request(method, path, body if method not in ("GET", "HEAD") else None, headers=draw.choice(HEADERS))
    if draw.random() < 0.15:
        sent = sent[: draw.randrange(len(sent))]
    return method, sent


def check(method: str, reply: Reply) -> None:
    """What every reply keeps to."""
    assert reply.status < 500, reply
    if method == "HEAD" and reply.status not in (400, 408):  # of half a head the method may not be known
        assert reply.body == b"", reply
    elif reply.status >= 400:
        error = reply.error
        assert error["message"], reply
        assert len(reply.body) < 2500, reply
        assert not [word for word in OURS if word in f"{error['message']} {error['param']}"], reply
    elif reply.headers.get("content-type") == "application/json":
        json.loads(reply.body)
    assert reply.status != 405 or reply.headers["allow"]
    assert not reply.headers.get("location", "").startswith(("http", "//"))
    if "content-length" in reply.headers and method != "HEAD":
        assert len(reply.body) == int(reply.headers["content-length"]), reply


@pytest.mark.parametrize("num", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_request_harms_the_server(fuzzed: Running, num: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    draw = random.Random(num)
    statuses: Counter[int | None] = Counter()
    waiting = []
    for _ in range(num):
        method, sent = drawn(draw)
        connection = connect(fuzzed, sent)
        if draw.random() < 0.1:
            connection.close()  # a client that leaves
            continue
        waiting.append((method, connection))
        if len(waiting) == 32:  # in company
            statuses += read(waiting)
    statuses += read(waiting)
    until(lambda: not fuzzed.server.server_state.connections, seconds=30)
    until(lambda: fuzzed.batch.num_open == 0)
    assert fuzzed.batch.ping(10)
    assert fuzzed.batch.engine.num_rows == 0
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert {200, 400, 403, 404, 405, 408, 415} <= set(statuses), statuses


def read(waiting: list[tuple[str, Any]]) -> Counter[int | None]:
    """The statuses of all that waits for a reply, each of them checked."""
    found: Counter[int | None] = Counter()
    for method, connection in waiting:
        with connection:
            reply = reply_of(connection)
        if reply is not None:
            check(method, reply)
        found[reply and reply.status] += 1
    waiting.clear()
    return found
