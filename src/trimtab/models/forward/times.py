"""What a pass of a network takes by the number of tokens that it reads, learned from the passes that run anyway."""

from __future__ import annotations

from collections.abc import Callable

MOST_TOKENS = 1024
"""Passes over more tokens are prompts being read, of which nobody asks."""
_NEWEST = 0.2
"""Weight of the newest pass in what its number of tokens takes."""
_SECOND, _EACH = 0.35, 0.06
"""What the second token of a pass adds to the first one's time, and each after it, where nothing was measured."""
_EACH_ELSEWHERE = 1 / 512
"""What a token of a pass adds on another device than a processor, which computes many at a time."""


class PassTimes:
    """Seconds by number of tokens. What was not measured is guessed from the nearest number that was.

    Seconds of another device than a processor are those of handing over, so nobody should note them.
    """

    def __init__(self, guess: Callable[[int], float] | None = None) -> None:
        self._guess = guess or guessed
        self._seconds: dict[int, float] = {}

    def note(self, num_tokens: int, seconds: float) -> None:
        """A pass over so many tokens, padding included, took so long."""
        if num_tokens <= MOST_TOKENS:
            before = self._seconds.get(num_tokens, seconds)
            self._seconds[num_tokens] = before + _NEWEST * (seconds - before)

    def seconds(self, num_tokens: int) -> float:
        """What a pass over so many tokens takes; where no pass was measured, in passes over one token."""
        if not self._seconds:
            return self._guess(num_tokens)
        nearest = min(self._seconds, key=lambda known: abs(known - num_tokens))
        return self._seconds[nearest] * self._guess(num_tokens) / self._guess(nearest)


def guessed(num_tokens: int) -> float:
    """What a pass takes in passes over one token, on a processor where nothing was measured."""
    return 1.0 if num_tokens < 2 else 1.0 + _SECOND + _EACH * (num_tokens - 2)


def guessed_elsewhere(num_tokens: int) -> float:
    """The same on another device, where nothing is measured."""
    return 1.0 + _EACH_ELSEWHERE * (num_tokens - 1)
