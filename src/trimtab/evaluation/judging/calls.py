"""Calls of an endpoint that each have one deadline, over all that a call may wait for.

A client's own timeouts begin anew with every byte, so an endpoint that sends one now and then is waited for without
end. Here a call runs as a task that is cancelled when its time is over: while a name is looked up, a connection made,
headers or a body read, or a redirect followed.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any


class TimedCalls:
    """Calls of an `openai.AsyncOpenAI` client from any thread. Use it as a context manager.

    `make_client` builds the client; `timeout_s` is the time of a call, in seconds. A call that takes longer raises
    TimeoutError; one that `cancel` ended, or that came after it, raises `concurrent.futures.CancelledError`.
    """

    def __init__(self, make_client: Callable[[], Any], timeout_s: float) -> None:
        self._client = make_client()
        self._timeout_s = timeout_s
        self._loop = _Loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge-calls", daemon=True)
        self._running: set[Future[Any]] = set()
        self._is_cancelled = False
        self._lock = threading.Lock()

    def __enter__(self) -> TimedCalls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        with suppress(Exception):  # what cannot be closed in a second is left
            asyncio.run_coroutine_threadsafe(asyncio.wait_for(self._client.close(), 1.0), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def complete(self, request: Mapping[str, object]) -> Any:
        """One chat completion of these arguments. Raises what the client raises, TimeoutError and CancelledError."""
        with self._lock:
            if self._is_cancelled:
                raise CancelledError
            call = asyncio.run_coroutine_threadsafe(self._complete(dict(request)), self._loop)
            self._running.add(call)
        try:
            return call.result()
        finally:
            self._running.discard(call)

    def cancel(self) -> None:
        """End every call that is under way, and let none begin any more."""
        with self._lock:
            self._is_cancelled = True
            running = list(self._running)
        for call in running:
            call.cancel()

    async def _complete(self, request: dict[str, object]) -> Any:
        async with asyncio.timeout(self._timeout_s):
            return await self._client.chat.completions.create(**request)


class _Loop(asyncio.SelectorEventLoop):
    """A loop that waits for no name server at its end: names are looked up in threads that nobody joins."""

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        addresses = self.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            if addresses.done():  # the call's time was over
                return
            if error is None:
                addresses.set_result(result)
            else:
                addresses.set_exception(error)

        def look_up() -> None:
            result, failure = None, None
            try:
                result = socket.getaddrinfo(host, port, family, type, proto, flags)
            except Exception as error:
                failure = error
            with suppress(RuntimeError):  # the loop has ended
                self.call_soon_threadsafe(settle, result, failure)

        threading.Thread(target=look_up, name="judge-name", daemon=True).start()
        return await addresses
