"""How many candidates a pass looks at for a guide that accepts or rejects: as many as pay."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trimtab.caches import Timed, caches_of
from trimtab.core import Session
from trimtab.mixing.selecting import Walk

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)
"""Candidates of a row that a pass may look at."""
_FIRST = (2.0, 4.0)
"""Candidates that were accepted, of so many, before any was seen."""
_MEMORY = 0.99
"""What a candidate weighs beside the one after it."""
_EACH = 0.06
"""What a candidate adds to the time of a pass, in passes of one row, where nothing says."""


class Looks:
    """Follows what passes take, and how often a candidate was accepted lately."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        """`cost` says what a pass over so many candidates takes, in any unit."""
        self._cost = cost
        self._accepted, self._asked = _FIRST

    @property
    def rate(self) -> float:
        """The share of candidates that is accepted."""
        return self._accepted / self._asked

    def width(self, num_rows: int) -> int:
        """The candidates of each of so many rows with which looks decide most rows in a second.

        A row is decided by its first accepted candidate, so a look at w of them decides it with 1 − (1 − rate)^w.
        """
        missed = min(1 - self.rate, 0.99)
        return min(WIDTHS, key=lambda width: self._cost(num_rows * width) / (1 - missed**width))

    def note(self, walk: Walk) -> None:
        """Learn from the rows that a walk decided: they were asked about candidates up to the first accepted."""
        accepted = walk.weighted > 0
        asked = torch.where(accepted.any(dim=-1), accepted.int().argmax(dim=-1) + 1, (~walk.scores.isnan()).sum(dim=-1))
        for row, num in enumerate(asked.tolist()):
            if num and row not in walk.left:
                kept = _MEMORY**num
                self._asked = kept * self._asked + num
                self._accepted = kept * self._accepted + float(accepted[row].any())


def look_cost(session: Session, num_tokens: int) -> float:
    """What a pass takes that looks at so many candidates over all rows of a session."""
    costs = [cache.pass_cost(num_tokens) for cache in caches_of([session]) if isinstance(cache, Timed)]
    return sum(costs) or 1.0 + _EACH * num_tokens
