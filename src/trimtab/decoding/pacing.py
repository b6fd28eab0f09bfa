"""How many tokens of prompts a step may feed, so that those whose tokens wait for it do not wait long."""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST = 16
"""Tokens of prompts that a step feeds at least, however slow they are."""
SHARE = 1.25
"""Seconds for prompts in a step, as a share of those that a step takes without any."""
_MEMORY = 0.3
"""Weight of what was measured last."""


class Pace:
    """Learns from the seconds of each step what a token of a prompt costs beside what a step takes without any."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._usual: float | None = None  # seconds of a step that feeds no prompt
        self._token: float | None = None  # seconds that a token of a prompt adds

    def limit(self, chunk: int) -> int:
        """How many tokens of prompts, `chunk` at most, the next step may feed while others wait for their tokens."""
        if self._usual is None or self._token is None:
            return min(chunk, 4 * LEAST)
        return min(chunk, max(LEAST, int(SHARE * self._usual / self._token))) if self._token > 0 else chunk

    def note(self, seconds: float, num_fed: int) -> None:
        """A step, in which others got tokens, took so long and fed so many tokens of prompts."""
        if not num_fed:
            self._usual = _mixed(self._usual, seconds)
        elif self._usual is not None:
            self._token = _mixed(self._token, max(0.0, seconds - self._usual) / num_fed)


def _mixed(before: float | None, now: float) -> float:
    return now if before is None else (1 - _MEMORY) * before + _MEMORY * now
