"""Connections that send nothing, half of something or do not read: each wait ends, and nobody else is kept out."""

from __future__ import annotations

import json
import logging
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server_process import until
from tests.serving.conftest import Running, Start
from tests.serving.raw import Reply, ask, connect, reply_of, request
from trimtab.serving.connections import connections_for
from trimtab.serving.limits import Limits

BODY = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 4}).encode()
START = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
WHOLE = request("POST", "/v1/completions", BODY)


@pytest.fixture(scope="module")
def hasty(start: Start) -> Iterator[Running]:
    limits = Limits(max_rows=4, max_new_tokens=2000, head_s=0.3, body_s=0.3, unread_s=0.3, max_connections=8)
    with start(limits) as server:
        yield server


def num_open(server: Running) -> int:
    return len(server.server.server_state.connections)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (WHOLE[:5], 408),
        (WHOLE[:60], 408),
        (WHOLE[:-1], 408),
        (WHOLE[: -len(BODY)], 408),
        (START + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", 408),
    ],
)
def test_half_a_request_ends_in_time(hasty: Running, sent: bytes, status: int | None) -> None:
    reply = ask(hasty, sent)
    assert (None if reply is None else reply.status) == status
    if reply is not None:
        assert reply.error["code"] == "request_timeout"
        assert reply.headers["connection"] == "close"
    until(lambda: num_open(hasty) == 0)
    assert hasty.batch.num_open == 0


def test_a_body_that_drips_ends_in_time(hasty: Running) -> None:
    with connect(hasty, WHOLE[:-30]) as connection:
        connection.settimeout(0.1)
        reply: Reply | None = None
        for _ in range(30):  # a byte each tenth of a second: never silent for long
            try:
                connection.sendall(b" ")
                reply = reply_of(connection)
                break
            except TimeoutError:
                continue
        assert reply is not None
        assert reply.status == 408


def test_the_second_head_on_a_connection_has_a_deadline_too(hasty: Running) -> None:
    kept = WHOLE.replace(b"connection: close\r\n", b"")
    with connect(hasty, kept + WHOLE[:20]) as connection:
        data = b""
        while piece := connection.recv(1 << 16):
            data += piece
    assert data.count(b"HTTP/1.1 200") == data.count(b"HTTP/1.1 408") == 1


def test_a_client_that_does_not_read_is_dropped(hasty: Running) -> None:
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 1900, "stream": True, "logprobs": 20, "n": 8, "seed": 1}
    asked["guidance"] = {"weights": {"up": 1.0}, "explain": True, "alternatives": 20}  # more than buffers hold
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = hasty.url.removeprefix("http://").split(":")
        connection.connect((address[0], int(address[1])))
        connection.sendall(request("POST", "/v1/completions", json.dumps(asked).encode()))
        until(lambda: {one.stage for one in hasty.server.server_state.connections} == {"unread"}, seconds=30)
        until(lambda: num_open(hasty) == 0, seconds=30)
        until(lambda: hasty.batch.num_open == 0)


def test_the_longest_silent_makes_room(hasty: Running) -> None:
    crowd = [connect(hasty, b"" if number % 2 else WHOLE[:60]) for number in range(20)]
    try:
        reply = ask(hasty, request("GET", "/health"))
        assert reply is not None
        assert reply.status == 200
        assert num_open(hasty) <= 8
    finally:
        for connection in crowd:
            connection.close()


def test_whoever_is_being_answered_is_not_dropped_for_another(start: Start) -> None:
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 1500, "stream": True, "seed": 1}
    with start(Limits(max_rows=2, max_connections=1)) as server:
        with connect(server, request("POST", "/v1/completions", json.dumps(asked).encode())) as served:
            assert served.recv(10)
            reply = ask(server, request("GET", "/health"))
            assert reply is not None
            assert (reply.status, reply.error["code"]) == (503, "busy")
            assert num_open(server) == 1
        until(lambda: server.batch.num_open == 0)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTQ/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000,
        START + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        START + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        START + b"content-length: -1\r\n\r\nabcd",
        START + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_without_a_traceback(
    hasty: Running, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    reply = ask(hasty, sent)
    assert reply is None or (400 <= reply.status < 500 and reply.error["message"])
    until(lambda: num_open(hasty) == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]


def in_chunks(body: bytes, size: int, head: bytes = b"%x\r\n") -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    typed = START + b"content-type: application/json\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    return typed + b"".join(head % len(piece) + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("head", [b"%x\r\n", b"000%X\r\n", b"%x;a=b\r\n", b"%x \t\r\n"])
def test_a_body_of_tiny_chunks_is_refused(hasty: Running, head: bytes) -> None:
    for size in (1, 100):
        reply = ask(hasty, in_chunks(BODY + b" " * 40_000, size, head))
        assert reply is None or (reply.status, reply.error["code"]) == (
            400,
            "tiny_chunks",
        )  # None: cut off while sending
        until(lambda: num_open(hasty) == 0)
    reply = ask(hasty, in_chunks(BODY + b" " * 1000, 3, head))
    assert reply is not None
    assert (reply.status, reply.error["code"]) == (400, "tiny_chunks")


def with_headers(num: int, body: bytes = BODY, *more: bytes) -> bytes:
    """A request with so many header lines beside the three that it needs."""
    lines = [b"x-%d: 1" % index for index in range(num)]
    typed = START + b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    return typed + b"".join(line + b"\r\n" for line in (*lines, *more)) + b"\r\n" + body


@pytest.mark.parametrize("sent", [with_headers(200), with_headers(200)[:-600]], ids=["whole", "half"])
def test_a_head_of_many_lines_is_refused(hasty: Running, sent: bytes) -> None:
    reply = ask(hasty, sent)
    assert reply is not None
    assert (reply.status, reply.error["code"]) == (431, "many_headers")
    until(lambda: num_open(hasty) == 0)
    assert hasty.batch.num_open == 0


def test_a_head_of_many_lines_behind_another_request_is_refused(hasty: Running) -> None:
    reply = ask(hasty, with_headers(0) + with_headers(200))
    assert reply is not None
    assert reply.status == 200
    assert b"HTTP/1.1 431" in reply.body


def test_lines_of_a_body_are_no_headers(hasty: Running) -> None:
    lines = json.dumps({**json.loads(BODY), "prompt": [[5] * 300]}, indent=0).encode()
    sent = with_headers(80, lines, b"connection: close")
    for one in (sent, sent.replace(b"\r\n", b"\n")):
        reply = ask(hasty, one)
        assert reply is not None
        assert reply.status == 200


def test_other_bodies_in_chunks_are_read(hasty: Running) -> None:
    lines = json.dumps({**json.loads(BODY), "user": "a" * 50_000}, indent=0).replace("\n", "\r\n").encode()
    ids = json.dumps({**json.loads(BODY), "prompt": [[5] * 400]}, indent=0).replace("\n", "\r\n").encode()
    for sent in (
        in_chunks(BODY, 1),
        in_chunks(BODY + b" " * 50_000, 300),
        in_chunks(lines, 1000),
        in_chunks(ids, 1000),
    ):
        reply = ask(hasty, sent)
        assert reply is not None
        assert reply.status == 200, reply


def test_large_bodies_have_a_bound_together(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.serving.guard._MOST_BODIES", 2)
    half = request("POST", "/v1/completions", b" " * 1000)[:-100]
    with start(Limits(max_body_bytes=1000)) as server:
        crowd = [connect(server, half) for _ in range(2)]
        refused = [reply for _ in range(2) if (reply := ask(server, WHOLE))]
        assert {reply.status for reply in refused} == {200}  # small ones fit
        last = ask(server, request("POST", "/v1/completions", BODY + b" " * 800))
        assert last is not None
        assert (last.status, last.error["code"]) == (503, "busy")
        for connection in crowd:
            connection.close()
        until(lambda: num_open(server) == 0)
        again = ask(server, request("POST", "/v1/completions", BODY + b" " * 800))
        assert again is not None
        assert again.status == 200


@pytest.mark.parametrize("hard", [None, 1024])
def test_the_cap_is_below_what_may_be_opened(monkeypatch: pytest.MonkeyPatch, hard: int | None) -> None:
    state: dict[str, Any] = {"limit": (256, hard or resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: state["limit"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: state.update(limit=limit))
    most = connections_for(1000)
    assert most == 1000 if hard is None else 700 < most < 1000
    soft, kept = state["limit"]
    assert soft > most + 100
    assert kept == (hard or resource.RLIM_INFINITY)
    assert connections_for(10) == 10
