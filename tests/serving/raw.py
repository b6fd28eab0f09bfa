"""Requests byte by byte, for what no client library would send."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.serving.conftest import Running


@dataclass(frozen=True)
class Reply:
    """A whole reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's account of what went wrong."""
        return dict(json.loads(self.body)["error"])


def connect(server: Running, data: bytes = b"", *, timeout: float = 20) -> socket.socket:
    """A connection that has sent `data`."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=timeout)
    connection.sendall(data)
    return connection


def request(
    method: str, path: str, body: bytes | None = None, *, headers: dict[str, str] | None = None, host: str = "localhost"
) -> bytes:
    """The bytes of a request, which asks for the connection to be closed after it."""
    found = {"host": host, "connection": "close"}
    if body is not None:
        found |= {"content-type": "application/json", "content-length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in (found | (headers or {})).items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + (body or b"")


def ask(server: Running, data: bytes) -> Reply | None:
    """What comes back for these bytes; None: nothing did."""
    with connect(server, data) as connection:
        return reply_of(connection)


def reply_of(connection: socket.socket) -> Reply | None:
    """The reply on a connection, up to its close; None: nothing came."""
    found = b""
    with suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            found += piece
    if not found:
        return None
    head, _, body = found.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    return Reply(int(first.split()[1]), headers, body)


def _joined(chunks: bytes) -> bytes:
    found = b""
    while chunks:
        size, _, chunks = chunks.partition(b"\r\n")
        found, chunks = found + chunks[: int(size, 16)], chunks[int(size, 16) + 2 :]
    return found
