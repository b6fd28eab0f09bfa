"""When a checkpoint is due by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_SHARE = 0.05
"""Checkpoints by minutes take at most this share of the time: after one that took long, the next has to wait."""


class Clock:
    """When the next checkpoint by minutes is due. `minutes` 0: never."""

    def __init__(self, minutes: float, time: Callable[[], float] = time.monotonic) -> None:
        self._wait = self._interval = 60 * minutes
        self._time = time
        self._last = time()

    @property
    def is_due(self) -> bool:
        """Whether it is time."""
        return self._interval > 0 and self._time() - self._last >= self._wait

    def now(self) -> float:
        """Seconds on this clock."""
        return self._time()

    def wrote(self, began: float) -> None:
        """A checkpoint was begun then, and is written now."""
        self._last = self._time()
        self._wait = max(self._interval, (self._last - began) / MAX_SHARE)
