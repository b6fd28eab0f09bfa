"""The one thread that touches tensors, from loading on.

torch keeps a set of threads for each thread that computes. Two such sets on the same cores put each other to sleep at
every operation: a model that was loaded in the main thread decodes at a third of its speed in another. So whoever
loads a model for a server does so here.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class _Task(Generic[T]):
    """A function, and where its result goes."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self._function = function

    def run(self) -> None:
        try:
            self.future.set_result(self._function())
        except BaseException as error:
            self.future.set_exception(error)


class TensorThread:
    """Runs what it is given, one after another. It does not keep the process from ending."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="trimtab-generation", daemon=True).start()

    def submit(self, function: Callable[..., T], *args: object) -> Future[T]:
        """The result to come of `function(*args)`."""
        task = _Task(partial(function, *args))
        self._tasks.put(task.run)
        return task.future

    def _run(self) -> None:
        while True:
            self._tasks.get()()
