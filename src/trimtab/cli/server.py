"""uvicorn around a service: it listens, drains on SIGTERM, and ends with 1 where the generation thread died."""

from __future__ import annotations

import dataclasses
import signal
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from trimtab.cli.options import say
from trimtab.serving.app import create_app

if TYPE_CHECKING:
    from trimtab.serving.app import Service

_GRACE_S = 5.0
"""For the last events to reach their clients, once the engine has ended what was left."""


class _Server(uvicorn.Server):
    """Told to end, the engine takes no new requests, and what still runs after `drain_s` fails."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Follows a signal at once; a signal's own handler may interrupt anything, so it only sets a flag."""
        engine = self._app.state.engine
        if engine.is_open:
            with suppress(OSError):  # nobody may be reading any more
                say(f"ending: {engine.num_open} answers have {self._drain_s:g} seconds to finish")
            engine.close()
            timer = threading.Timer(self._drain_s, engine.stop)
            timer.daemon = True
            timer.start()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket of this port, not open yet. Raises OSError where the port is taken."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, proto)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    return found


def serve(service: Service, listener: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM. Returns 1 where the generation thread died."""
    servers: list[_Server] = []
    deaths: list[BaseException] = []

    def end(*_: object) -> None:
        for server in servers:
            server.should_exit = True

    def die(error: BaseException) -> None:
        deaths.append(error)
        end()

    app = create_app(dataclasses.replace(service, on_death=die))
    drain_s = service.limits.drain_s
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(drain_s + _GRACE_S),
    )
    servers.append(_Server(config, app, drain_s))
    host, port = listener.getsockname()[:2]
    # Until uvicorn's own handlers are there, and after: it raises the signals that ended it again.
    before = {sig: signal.signal(sig, end) for sig in (signal.SIGINT, signal.SIGTERM)}
    listener.listen()  # whoever reads the next line may connect, and may tell it to end
    try:
        at = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        say(f"serving {service.catalogue.name} at {at} (/v1 for clients)")
        servers[0].run(sockets=[listener])
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    return 1 if deaths else 0
