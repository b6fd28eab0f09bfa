"""uvicorn around a service: how it listens, and how it ends.

The first signal (SIGINT, SIGTERM, SIGHUP) drains: nothing new is taken, what runs has `drain_s`, and whoever has sent
half a request is dropped. A second one ends at once with 130; each stream still ends with an error event. A death of
the generation thread ends with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from fastapi import FastAPI

from trimtab.cli.exits import Exit
from trimtab.cli.options import say
from trimtab.serving.app import abandon, create_app
from trimtab.serving.connections import HTTPServer, configured, open_of
from trimtab.serving.hosts import is_loopback
from trimtab.serving.logs import spare

if TYPE_CHECKING:
    from trimtab.serving.app import Service
    from trimtab.serving.limits import Limits

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_GRACE_S = 0.5
"""For the last events to reach their clients, and for the generation thread to end its step."""
_TICK_S = 0.05


class _Server(HTTPServer):
    """Told to end, the engine takes no new requests, and what still runs after `drain_s` fails."""

    def __init__(self, app: FastAPI, limits: Limits) -> None:
        super().__init__(configured(app, limits))
        self._app = app
        self._drain_s = limits.drain_s
        self.exit_code = Exit.DONE
        self.is_forced = False
        """Whether a second signal has come. uvicorn has such a flag too, by which it leaves at once, in silence."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Nothing: `serve` has set the handlers."""
        yield

    def handle_exit(self, *_: object) -> None:
        """A signal's handler, which may interrupt anything, so it only sets flags; the event loop looks at them."""
        self.is_forced = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Follows the first signal at once."""
        batch = self._app.state.batch
        if batch.is_open:
            with suppress(OSError):  # nobody may be reading any more
                say(f"ending: {batch.num_open} answers have {self._drain_s:g} seconds to finish")
            batch.close()
            timer = threading.Timer(self._drain_s, batch.stop)
            timer.daemon = True
            timer.start()
        for connection in open_of(self.server_state):
            if connection.stage == "body":
                connection.refuse(503, "The server is ending and takes no new requests.", "stopping")
        end = asyncio.create_task(self._see_to_the_end())
        await super().shutdown(sockets)
        end.cancel()

    async def _see_to_the_end(self) -> None:
        """Wait for the drain or for a second signal; then for nobody for long."""
        until = time.monotonic() + self._drain_s + _GRACE_S
        while time.monotonic() < until and not self.is_forced:
            await asyncio.sleep(_TICK_S)
        abandon(self._app)
        await self._sent(_GRACE_S)
        if not self.is_forced:
            for connection in open_of(self.server_state):  # their clients do not read
                connection.drop()
            await asyncio.sleep(_GRACE_S)
        # The generation thread is in a step that has no end.
        leave(Exit.INTERRUPTED if self.is_forced else self.exit_code)

    async def _sent(self, seconds: float) -> None:
        """Wait until all replies have left, or so long."""
        until = time.monotonic() + seconds
        while open_of(self.server_state) and time.monotonic() < until:
            await asyncio.sleep(_TICK_S)


def leave(code: Exit) -> NoReturn:
    """End the process now. Threads that compute may not outlive the interpreter, which would abort."""
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


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


def serve(service: Service, listener: socket.socket) -> Exit:
    """Serve until a signal. Returns 1 where the generation thread died."""
    app = create_app(dataclasses.replace(service, on_death=lambda error: die()))
    server = _Server(app, service.limits)

    def die() -> None:
        server.exit_code = Exit.FAILED
        server.should_exit = True

    host, port = listener.getsockname()[:2]
    # A SIGHUP that is ignored (nohup) stays so; shells ignore SIGINT for all that they start in the background.
    ends = [sig for sig in _SIGNALS if sig == signal.SIGINT or signal.getsignal(sig) != signal.SIG_IGN]
    for sig in ends:  # for good: the process ends next, and a signal amid that may not be a traceback
        signal.signal(sig, server.handle_exit)
    spare()
    gc.collect()
    gc.freeze()  # the model's objects are not walked again whenever a large body has been read
    listener.listen()  # whoever reads the next line may connect, and may tell it to end
    if not service.keys and not is_loopback(host):
        say("no API key is set: whoever reaches this address may use the server")
    at = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    say(f"serving {service.catalogue.name} at {at} (/v1 for clients)")
    server.run(sockets=[listener])
    return Exit.INTERRUPTED if server.is_forced else server.exit_code
