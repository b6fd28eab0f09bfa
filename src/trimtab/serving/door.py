"""The first thing that a request meets: whose server it thinks this is, and how it writes what it wants. Plain ASGI.

A page may be made to take a server on this machine for its own origin, by a name of its own that suddenly leads here
(DNS rebinding). So a server that listens on this machine alone answers to this machine's names only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from trimtab.serving.guard import App, MutableScope, Receive, Send, header_of, send_error
from trimtab.serving.hosts import ANY, is_loopback
from trimtab.serving.metrics import Metrics
from trimtab.serving.wordings import cut

_PORTS = {"http": "80", "https": "443"}


class Hosts:
    """The names that are answered: this machine's own, and `names`; all names where `names` holds "*".

    `origins`: other origins whose pages may call.
    """

    def __init__(self, names: Sequence[str], origins: Sequence[str] = ()) -> None:
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def refusal(self, method: str, host: str | None, origin: str | None) -> str | None:
        """Why a request with these headers is not answered; None: it is."""
        if ANY in self._names:
            return None
        name, port = _split(host or "")
        # Every browser names the origin of a POST, so without one it is no page's; and a name without a dot is what
        # machines and containers are called among themselves.
        is_program = method == "POST" and origin is None and bool(name) and not set(".:") & set(name)
        if host is not None and not (self._knows(name) or is_program):
            return (
                f"This server listens on this machine alone and does not answer to {cut(host)!r}. Call it by "
                "127.0.0.1 or localhost, or start it with --allow-host NAME."
            )
        if origin is not None and not self._is_ours(origin, name, port):
            return f"Pages of {cut(origin)!r} may not call this server; --allow-origin at its start lets them."
        return None

    def _knows(self, name: str) -> bool:
        return name in self._names or is_loopback(name)

    def _is_ours(self, origin: str, name: str, port: str) -> bool:
        """Whether an origin was allowed, or is the one that the request itself was sent to."""
        origin = origin.lower().rstrip("/")
        if origin in self._origins or ANY in self._origins:
            return True
        scheme, _, place = origin.partition("://")
        its_name, its_port = _split(place)
        same = (its_name, its_port or _PORTS.get(scheme)) == (name, port or _PORTS.get(scheme))
        return bool(its_name) and (its_name in self._names or same)


def _split(host: str) -> tuple[str, str]:
    """(name in lower case, port or nothing) of a Host header. An invalid header has no name."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return "", ""
    if parts.path or parts.query or parts.fragment or "@" in host or host != host.strip():
        return "", ""
    return name.rstrip("."), "" if port is None else str(port)


class Door:
    """Wraps an application. HEAD is answered as GET without a body; a slash at the end of a path says nothing."""

    def __init__(self, app: App, *, hosts: Hosts, metrics: Metrics) -> None:
        self._app = app
        self._hosts = hosts
        self._metrics = metrics

    async def __call__(self, scope: MutableScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"
        sent = _without_body(send) if is_head else send
        why = self._hosts.refusal(scope["method"], header_of(scope, b"host"), header_of(scope, b"origin"))
        if why is not None:
            self._metrics.requests.labels("other", "403").inc()
            await send_error(sent, 403, why, "host_not_allowed")
            return
        more: dict[str, Any] = {"method": "GET"} if is_head else {}
        path = scope["path"]
        if path.endswith("/") and not path.startswith("/playground"):  # whose page is found relative to its address
            more["path"] = path.rstrip("/") or "/"
        await self._app({**scope, **more}, receive, sent)


def _without_body(send: Send) -> Send:
    async def sent(message: MutableScope) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sent
