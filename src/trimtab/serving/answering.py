"""One HTTP request's answers on the event loop's side: submitted together, read as they grow, cancelled if left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from trimtab.answers import Step
from trimtab.errors import ClientGoneError
from trimtab.serving.asking import Wanted
from trimtab.serving.batch_thread import BatchThread, Event, Job


class Answering:
    """The answers of one request. Every use ends with `close`; until then it is among `all_open`."""

    def __init__(self, batch: BatchThread, wanted: Sequence[Wanted], all_open: set[Answering]) -> None:
        self._batch = batch
        self._all_open = all_open
        self.wanted = wanted
        self._mail: asyncio.Queue[Event | None] = asyncio.Queue()
        self.jobs = [
            Job(one.prompt, one.params, one.guides, one.num_prompt_tokens, self._mail.put_nowait) for one in wanted
        ]
        self._places = {id(job): index for index, job in enumerate(self.jobs)}
        self._open = len(self.jobs)
        self._early: list[Event] = []
        all_open.add(self)

    async def begin(self) -> None:
        """Submit, and wait until every answer has been taken. Raises what the batch thread raises."""
        self._batch.submit(self.jobs)
        num_taken = 0
        while num_taken < len(self.jobs):
            event = await self._next()
            if event.step is None:
                num_taken += 1
            else:
                self._early.append(event)

    async def steps(self) -> AsyncIterator[tuple[int, Step]]:
        """(which answer, its step) until all have ended. Raises the error of one that failed, or ClientGoneError."""
        while self._open:
            event = self._early.pop(0) if self._early else await self._next()
            if event.step is not None:
                self._open -= event.is_last
                yield self._places[id(event.job)], event.step

    def leave(self) -> None:
        """The client has gone: whoever reads the steps is told."""
        self._mail.put_nowait(None)

    def fail(self, error: Exception) -> None:
        """Whoever reads the steps is told that no more follow, and why."""
        for job in self.jobs[:1]:
            self._mail.put_nowait(Event(job, error=error))

    def close(self) -> None:
        """Free what has not ended. It may be called again."""
        if self._open and self in self._all_open:
            self._batch.cancel(self.jobs)
        self._all_open.discard(self)

    async def _next(self) -> Event:
        event = await self._mail.get()
        if event is None:
            raise ClientGoneError("The client has gone.")
        if event.error is not None:
            raise event.error
        return event
