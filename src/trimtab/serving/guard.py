"""What stands before the routes: body size, API keys, security headers, a count of requests. Plain ASGI."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from trimtab.serving.metrics import Metrics

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
        matches = [hmac.compare_digest(given, own) for own in self._digests]  # all of them: no early end
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Guard:
    """Wraps an application."""

    def __init__(self, app: App, *, keys: Keys, max_body_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Exchange(self, scope, receive, send)
        length = request.header(b"content-length") or "0"
        try:
            if _needs_key(scope["path"]) and not self._keys.accept(request.header(b"authorization")):
                await request.refuse(401, "Give a valid API key: Authorization: Bearer KEY.", "invalid_api_key")
            elif length.isdigit() and int(length) > self._max_body_bytes:
                await request.refuse_body()
            else:
                await self._app(scope, request.receive, request.send)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(request.status or "none")).inc()


class _Exchange:
    """One request and its reply."""

    def __init__(self, guard: Guard, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self._limit = guard._max_body_bytes
        self._scope = scope
        self._receive = receive
        self._send = send
        self._num_bytes = 0
        self._refused = False
        self.status: int | None = None

    def header(self, name: bytes) -> str | None:
        """A header's value."""
        found = [value for key, value in self._scope["headers"] if key == name]
        return found[0].decode("latin-1") if found else None

    async def receive(self) -> Message:
        """The next message, counted."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            if self._num_bytes > self._limit:
                await self.refuse_body()
                return {"type": "http.disconnect"}
        return message

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
        error = {"message": text, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
        self._refused = True

    async def refuse_body(self) -> None:
        """The body is too large, as its header said or as came out while it was read."""
        await self.refuse(
            413, f"The body is too large; this server takes at most {self._limit} bytes.", "body_too_large"
        )


def _needs_key(path: str) -> bool:
    return path.startswith("/v1") or path == "/metrics"
