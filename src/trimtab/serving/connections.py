"""uvicorn's connections with an end to every wait: for a head, for a body, for a client that does not read.

uvicorn closes a connection that is idle after a reply, and knows no other deadline. A thousand silent connections would
keep everybody else out, and each refused `accept` would be a traceback in the log. So the stages of all connections are
looked at twice a second, and their number stays below what the process may open.
"""

from __future__ import annotations

import asyncio
import http
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from trimtab.serving.limits import Limits
from trimtab.serving.problems import error_body

Stage = Literal["head", "body", "answer", "unread", "closing"]

_IDLE_S = 5
"""Between a reply and the next request on its connection."""
_CLOSING_S = 5.0
"""For the last bytes to leave a connection that is being closed."""
_LOOK_EVERY = 5
"""Ticks of uvicorn's loop, of a tenth of a second each."""
_ACCEPTED_AT_ONCE = 64
"""Connections that the event loop opens before anybody can count them."""
_BACKLOG = 1024
_SPARE_FILES = 2 * _ACCEPTED_AT_ONCE
"""Descriptors for accepting beyond the cap, and for the files of the page."""
_RECEIVED_AT_ONCE = 1 << 14
"""Bytes read in one go: everybody else waits while they are taken apart."""
_TINY = re.compile(rb"\r\n0*[0-9a-fA-F]{1,2}[ \t]*(?:;[^\r\n]*)?(?=\r\n)")
"""The head of a chunk of less than 256 bytes."""
_MOST_TINY = 256
"""The most tiny chunks of a request. Each takes 0.01 ms, however little it holds: some megabytes of them would stop the
server."""
_MOST_LINES = 100
"""The most lines of a head, as other servers have it. Each is taken apart by itself, and a head of 64 KiB may have
thousands."""
_HEAD_ENDS = re.compile(rb"\n\r?\n")


class Connection(H11Protocol):
    """One connection; `patience` has the longest that each stage may last, in seconds."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: Mapping[Stage, float],
        max_connections: int,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience = patience
        self._max_connections = max_connections
        self._num_tiny = 0
        self._seen: tuple[Stage, object] = ("head", None)
        self.since = self.loop.time()
        """When the present stage was first seen."""

    @property
    def stage(self) -> Stage:
        """What this connection waits for."""
        if self.transport.is_closing():
            return "closing"
        if self.cycle is None or self.cycle.response_complete:
            return "head"
        if self.flow.write_paused:
            return "unread"
        return "body" if self.cycle.more_body else "answer"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it, where there is none: by whoever has kept us waiting longest, else by itself."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _RECEIVED_AT_ONCE
        if len(self.connections) <= self._max_connections:
            return
        waiting = [one for one in open_of(self.server_state) if one is not self and one.stage in ("head", "body")]
        if waiting:
            min(waiting, key=lambda one: one.since).drop()
        else:
            self.refuse(503, "All connections of this server are in use. Try again later.", "busy")

    def data_received(self, data: bytes) -> None:
        """As uvicorn, unless the connection was refused, or is now."""
        if self.transport.is_closing():
            return
        self._num_tiny += len(_TINY.findall(data))
        if self._num_tiny > _MOST_TINY:
            self.refuse(
                400, "The body comes in too many chunks of less than 256 bytes; send larger ones.", "tiny_chunks"
            )
        else:
            super().data_received(data)

    def handle_events(self) -> None:
        """As uvicorn, unless what comes next is a head of too many lines."""
        if self.conn.their_state is h11.IDLE:
            head = _HEAD_ENDS.split(self.conn.trailing_data[0], maxsplit=1)[0]
            if head.count(b"\n") > _MOST_LINES:
                self.refuse(431, f"The request has more than {_MOST_LINES} header lines; send fewer.", "many_headers")
                return
        super().handle_events()

    def on_response_complete(self) -> None:
        """As uvicorn."""
        self._num_tiny = 0
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        self.refuse(400, msg, "not_http")

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: whoever asks for a WebSocket is answered by HTTP, and uvicorn would advise to install one."""

    def look(self, now: float) -> None:
        """End a stage that lasts too long."""
        seen = (self.stage, self.cycle)
        if seen != self._seen:
            self._seen, self.since = seen, now
        elif now - self.since > self._patience[self.stage]:
            self.expire()

    def expire(self) -> None:
        """End the present stage: say so where somebody may be listening."""
        if self.stage in ("unread", "closing", "answer"):
            self.drop()
        elif self.stage == "head" and not self.conn.trailing_data[0]:  # of a head, nothing came
            self.transport.close()
        else:
            self.refuse(408, "The request did not come in time.", "request_timeout")

    def drop(self) -> None:
        """Close, whatever is still to be sent."""
        self.transport.abort()

    def refuse(self, status: int, message: str, code: str) -> None:
        """Reply with an error, unless a reply has begun, and close."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # the application hears of it, and nothing that it sends goes out
            cycle.message_event.set()
        if cycle is None or not cycle.response_started or cycle.response_complete:
            kind = "server_error" if status >= 500 else "invalid_request_error"
            body = json.dumps(error_body(message, kind, None, code)).encode()
            lines = [
                f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                "connection: close",
            ]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()


def open_of(state: ServerState) -> list[Connection]:
    """The connections of a server that are open now."""
    return [one for one in state.connections if isinstance(one, Connection)]


class HTTPServer(uvicorn.Server):
    """Looks at its connections, and takes as many at once as it can count."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the queue of those who are not accepted yet is longer than what is accepted at once."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        """Called every tenth of a second."""
        if counter % _LOOK_EVERY == 0:
            self.look()
        return await super().on_tick(counter)

    def look(self) -> None:
        """End what lasts too long."""
        now = asyncio.get_running_loop().time()
        for connection in open_of(self.server_state):
            connection.look(now)


def configured(app: Any, limits: Limits, *, port: int = 0) -> uvicorn.Config:
    """uvicorn's configuration of an application that strangers may reach, on any free port unless one is given."""
    patience: Mapping[Stage, float] = {
        "head": limits.head_s,
        "body": limits.body_s,
        "answer": limits.timeout_s + limits.unread_s,
        "unread": limits.unread_s,
        "closing": _CLOSING_S,
    }
    protocol: Callable[..., asyncio.Protocol] = partial(
        Connection, patience=patience, max_connections=connections_for(limits.max_connections)
    )
    return uvicorn.Config(
        app,
        http=cast(Any, protocol),
        ws="none",
        loop="asyncio",
        lifespan="on",
        backlog=_ACCEPTED_AT_ONCE,
        timeout_keep_alive=_IDLE_S,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        port=port,
    )


def connections_for(wanted: int) -> int:
    """How many of `wanted` connections this process may have open; its soft limit of descriptors is raised first."""
    try:
        import resource
    except ImportError:  # no such limits on this system
        return wanted
    with open(os.devnull) as lowest:
        num_files = lowest.fileno() + _SPARE_FILES  # descriptors are given out from the lowest on
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_files + wanted
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):  # where the system knows better
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = wanted if soft == resource.RLIM_INFINITY else soft - num_files
    return max(1, min(wanted, room))
