"""What stands before the routes: body size, API keys, security headers, a count of requests. Plain ASGI."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from trimtab.serving.metrics import Metrics
from trimtab.serving.problems import error_body

MutableScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


_MOST_BODIES = 64


class Keys:
    """The API keys that are accepted; none: everybody is. Compared in constant time, never kept or logged as text."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def accept(self, header: str | None) -> bool:
        """Whether an Authorization header carries a key."""
        if not self._digests:
            return True
        scheme, _, key = (header or "").partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._digests]  # all of them: no early end
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Guard:
    """Wraps an application. All bodies that are being read or answered hold at most `_MOST_BODIES` times the limit."""

    def __init__(self, app: App, *, keys: Keys, max_body_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self.max_body_bytes = max_body_bytes
        self.num_bytes = 0
        """Bytes that the bodies of all requests without a reply take together."""

    async def __call__(self, scope: MutableScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Exchange(self, receive, send)
        length = header_of(scope, b"content-length") or "0"
        try:
            if _needs_key(scope["path"]) and not self._keys.accept(header_of(scope, b"authorization")):
                await request.refuse(401, "Give a valid API key: Authorization: Bearer KEY.", "invalid_api_key")
            elif length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > self.max_body_bytes):
                await request.refuse_body()
            else:
                await self._app(scope, request.receive, request.send)
        finally:
            self.num_bytes -= request.num_bytes
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(request.status or "none")).inc()


class _Exchange:
    """One request and its reply."""

    def __init__(self, guard: Guard, receive: Receive, send: Send) -> None:
        self._guard = guard
        self._receive = receive
        self._send = send
        self._refused = False
        self.num_bytes = 0
        self.status: int | None = None

    async def receive(self) -> Message:
        """The next message, counted."""
        message = await self._receive()
        if message["type"] == "http.request" and not self._refused:
            num_bytes = len(message.get("body", b""))
            self.num_bytes += num_bytes
            self._guard.num_bytes += num_bytes
            limit = self._guard.max_body_bytes
            if self.num_bytes > limit:
                await self.refuse_body()
            elif self._guard.num_bytes > limit * _MOST_BODIES:
                await self.refuse(503, "Too many large bodies are being read at once. Try again later.", "busy")
        return {"type": "http.disconnect"} if self._refused else message

    async def send(self, message: Message) -> None:
        """A message, with our headers; nothing more once the request was refused here."""
        if self._refused:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await self._send(message)

    async def refuse(self, status: int, text: str, code: str) -> None:
        """An error in OpenAI's shape."""
        self._refused = True
        self.status = status
        await send_error(self._send, status, text, code)

    async def refuse_body(self) -> None:
        """The body is too large, as its header said or as came out while it was read."""
        limit = self._guard.max_body_bytes
        await self.refuse(413, f"The body is too large; this server takes at most {limit} bytes.", "body_too_large")


def header_of(scope: MutableScope, name: bytes) -> str | None:
    """A header's value, the first of several."""
    value = next((value for key, value in scope["headers"] if key == name), None)
    return None if value is None else value.decode("latin-1")


async def send_error(send: Send, status: int, text: str, code: str) -> None:
    """A whole reply that is an error in OpenAI's shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = json.dumps(error_body(text, kind, None, code)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *_MORE_HEADERS.get(status, ()),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_MORE_HEADERS = {401: ((b"www-authenticate", b"Bearer"),), 503: ((b"retry-after", b"1"),)}


def _needs_key(path: str) -> bool:
    return path.startswith("/v1") or path == "/metrics"
