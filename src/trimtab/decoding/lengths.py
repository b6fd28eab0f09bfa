"""How many tokens to guess: as many as what was accepted lately pays for."""

from __future__ import annotations

from collections.abc import Callable

MOST = 16
"""The longest draft that is made unasked."""
FIRST_RATE = 0.6
"""The share of guesses that is taken to be right before any is seen."""
_MEMORY = 0.1
"""Weight of the newest guess in the rate."""
_HOPE = 0.01
"""How far a step without a guess moves the rate back towards the first: so another is tried now and then."""
_WORTH = 1.02
"""How much faster drafts must be to be made."""


class Appetite:
    """How often guesses of one request were right lately, and how long a draft that justifies."""

    def __init__(self) -> None:
        self.rate = FIRST_RATE

    def length(self, most: int, cost: Callable[[int], float]) -> int:
        """The number of guesses, up to `most`, with the most tokens expected for the time of a step; 0: none pays.

        `cost` says what a step with so many guesses takes, in any unit. The first guess is right with the rate, each
        other where those before it are and it is, too.
        """
        best, least = 0, cost(0) / _WORTH
        expected, chance = 1.0, 1.0
        for num in range(1, most + 1):
            chance *= self.rate
            expected += chance
            each = cost(num) / expected
            if each < least:
                best, least = num, each
            elif num > best + 2:
                break
        if not best:
            self.rate += _HOPE * (FIRST_RATE - self.rate)
        return best

    def note(self, num_drafted: int, num_right: int) -> None:
        """The first `num_right` of so many guesses were right, the next was wrong, others were not looked at."""
        for right in [1.0] * num_right + [0.0] * (num_drafted > num_right):
            self.rate += _MEMORY * (right - self.rate)
