"""A judge's endpoint that keeps a call open in every way there is: each call ends when its time is over."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.fake_judge import completion
from trimtab.evaluation.judging.chat_judge import ChatJudge, Endpoint
from trimtab.evaluation.judging.judges import FIRST, Question, Verdict

pytest.importorskip("openai")

QUESTION = Question("Which is larger?", "first text", "second text")
PATIENCE_S = 10.0
"""So long a bad endpoint drips before it answers after all: who waits gets a verdict, and the test fails."""

Talk = Callable[[socket.socket, threading.Event], None]


@contextmanager
def endpoint(talk: Talk) -> Iterator[str]:
    """The address of a server that reads a request and then does what it likes with the connection."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            talk(connection, over)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


BODY = completion("[[A]]").encode()
HEAD = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n".encode()


def _drip(connection: socket.socket, over: threading.Event, piece: bytes) -> None:
    for _ in range(int(PATIENCE_S / 0.05)):
        if over.wait(0.05):
            return
        connection.sendall(piece)


def silence(connection: socket.socket, over: threading.Event) -> None:
    over.wait(PATIENCE_S)
    connection.sendall(HEAD + b"\r\n" + BODY)


def a_body_in_drops(connection: socket.socket, over: threading.Event) -> None:
    num_spaces = int(PATIENCE_S / 0.05)
    head = HEAD.replace(str(len(BODY)).encode(), str(len(BODY) + num_spaces).encode())
    connection.sendall(head + b"\r\n")
    _drip(connection, over, b" ")
    connection.sendall(BODY)


def a_body_without_end(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    _drip(connection, over, b"1\r\n \r\n")
    connection.sendall(f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n")


def headers_in_drops(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(HEAD)
    _drip(connection, over, b"x-more: 1\r\n")
    connection.sendall(b"\r\n" + BODY)


def a_status_in_drops(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 ")
    _drip(connection, over, b"O")
    connection.sendall(HEAD.partition(b"\r\n")[2] + b"\r\n" + BODY)


def redirects(connection: socket.socket, over: threading.Event) -> None:
    over.wait(0.15)
    connection.sendall(b"HTTP/1.1 307 Again\r\nlocation: /v1/again\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


def _asked(base_url: str, **changes: Any) -> Verdict:
    options: dict[str, Any] = {"timeout_s": 0.5, "max_attempts": 1, **changes}
    ((_, verdict),) = ChatJudge(Endpoint(model="m", base_url=base_url, **options)).judge([QUESTION])
    return verdict


@pytest.mark.parametrize(
    "talk", [silence, a_body_in_drops, a_body_without_end, headers_in_drops, a_status_in_drops, redirects]
)
def test_a_call_ends_when_its_time_is_over(talk: Talk) -> None:
    with endpoint(talk) as base_url:
        assert _asked(base_url) == Verdict(None, "no reply within 0.5 s", 1)


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the call, and not when the judge is left."""
    over = threading.Event()

    def look_up(*args: Any, **hints: Any) -> Any:
        over.wait(PATIENCE_S)
        raise socket.gaierror("nobody answered")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert _asked("http://judge.invalid/v1") == Verdict(None, "no reply within 0.5 s", 1)
    over.set()


def test_a_name_that_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*args: Any, **hints: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert "cannot be reached" in _asked("http://judge.invalid/v1", timeout_s=5.0).problem


def test_names_are_looked_up_all_the_same() -> None:
    def at_once(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(HEAD + b"\r\n" + BODY)

    with endpoint(at_once) as base_url:
        assert _asked(base_url.replace("127.0.0.1", "localhost"), timeout_s=5.0).winner == FIRST


def test_the_wait_for_a_turn_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that sends everybody away again and again, each time for as long as it may."""
    from trimtab.evaluation.judging import chat_judge

    monkeypatch.setattr(chat_judge, "LONGEST_WAIT_S", 0.2)

    def full(connection: socket.socket, over: threading.Event) -> None:
        body = b"retry-after: 60\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
        connection.sendall(b"HTTP/1.1 429 Full\r\n" + body)

    with endpoint(full) as base_url:
        judge = ChatJudge(Endpoint(model="m", base_url=base_url, timeout_s=0.5, max_attempts=2, concurrency=2))
        found = dict(judge.judge([QUESTION] * 3))
    assert {verdict.winner for verdict in found.values()} == {None}
    assert all("429" in verdict.problem for verdict in found.values())
