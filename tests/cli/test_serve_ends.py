"""How `trimtab serve` ends: drained by a first signal, at once by a second, whatever is half sent or half read."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Tiny
from tests.server_process import serving

pytest.importorskip("fastapi")

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
ROUGH = ("Traceback", "terminate called", "Error")


def whole(**changes: object) -> bytes:
    body = json.dumps({"model": "small", "prompt": "a", "max_tokens": 80, "seed": 1, **changes}).encode()
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


def connect(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(data)
    return connection


def rest_of(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(1 << 16):
        found += piece
    return found


def said(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    return server.stderr.read()


@pytest.fixture
def running(tiny: Tiny, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server of answers that go on for long, with a long drain; a step takes a fifth of a second."""
    slow = "import time\nfrom trimtab.decoding import decoder as decoding\nsound = decoding.Decoder.step\n"
    slow += "def step(self):\n    time.sleep(0.2)\n    return sound(self)\ndecoding.Decoder.step = step\n"
    (tmp_path / "sitecustomize.py").write_text(slow)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with serving("--model", tiny.model, "--name", "small", "--drain-s", "20", PYTHONPATH=path) as found:
        yield found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGHUP, signal.SIGINT),
        pytest.param(signal.SIGINT, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_ends_at_once_and_each_stream_says_so(
    running: tuple[subprocess.Popen[str], int], first: signal.Signals, second: signal.Signals
) -> None:
    server, port = running
    streams = [connect(port, whole(stream=True)) for _ in range(3)]
    plain, half = connect(port, whole()), connect(port, whole()[:-9])
    assert all(stream.recv(10) for stream in streams)
    server.send_signal(first)
    assert b"503" in rest_of(half)  # dropped at the first
    assert server.poll() is None
    before = time.monotonic()
    server.send_signal(second)
    assert server.wait(15) == 130
    assert time.monotonic() - before < 10  # of a drain of 20
    for stream in streams:
        end = rest_of(stream)
        assert b'"error"' in end
        assert b"[DONE]" not in end
    assert b" 503 " in rest_of(plain).split(b"\r\n")[0]
    assert not [word for word in ROUGH if word in said(server)]


@pytest.mark.parametrize(
    "sig", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGHUP))]
)
def test_whatever_is_half_sent_is_dropped_by_the_first(
    running: tuple[subprocess.Popen[str], int], sig: signal.Signals
) -> None:
    server, port = running
    kept = [connect(port, whole()[:end]) for end in (0, 5, 60, len(HEAD), -9)]
    kept.append(connect(port, HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab"))
    kept.append(connect(port, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"))  # kept alive
    assert kept[-1].recv(10)
    server.send_signal(sig)
    assert server.wait(10) == 0
    assert not [word for word in ROUGH if word in said(server)]
    for connection in kept:
        connection.close()
