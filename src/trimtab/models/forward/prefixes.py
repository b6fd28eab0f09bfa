"""Sequences that begin alike: what one row has been fed, another takes over, so that a system prompt, a chat template
or the prompt of n answers is fed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

LEAST = 16
"""Tokens in common below which copying them is not worth it."""
WORTH_A_PASS = 64
"""Tokens that rows must save together for them to wait until another row has been fed."""


class Fed(Protocol):
    """A sequence, and how much of it has been fed."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def length(self) -> int: ...
    @property
    def adapter(self) -> object | None: ...


R = TypeVar("R", bound=Fed)


def in_common(one: list[int], other: list[int]) -> int:
    """How many tokens two sequences begin with alike; 0 where it is fewer than `LEAST`."""
    low, high = LEAST, min(len(one), len(other))
    if high < low or one[:low] != other[:low]:
        return 0
    while low < high:  # the first `low` are the same; at most `high` are
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def lend(fresh: Sequence[R], fed: Sequence[R]) -> tuple[list[tuple[R, R, int]], list[R]]:
    """Who takes over what from whom, and which rows had better wait.

    `fresh` rows have nothing fed. Gives (row, the fed row it begins like, how many tokens they share) for those that
    share any, and the rows that should be fed only after the other fresh ones, since they share more with one of them.
    """
    loans: list[tuple[R, R, int]] = []
    later: list[R] = []
    saved = 0
    for position, row in enumerate(fresh):
        now, donor = _best(row.tokens, row.adapter, [(other, other.length) for other in fed])
        then, _ = _best(row.tokens, row.adapter, [(other, len(other.tokens)) for other in fresh[:position]])
        if donor is not None:
            loans.append((row, donor, now))
        if then >= now + LEAST:
            later.append(row)
            saved += then - now
    if saved < WORTH_A_PASS:
        return loans, []
    return [loan for loan in loans if not any(loan[0] is row for row in later)], later


def shared_with(tokens: list[int], adapter: object | None, fed: Sequence[R]) -> int:
    """How many tokens a sequence begins with like what one of some rows has been fed."""
    return _best(tokens, adapter, [(other, other.length) for other in fed])[0]


def _best(tokens: list[int], adapter: object | None, others: Sequence[tuple[R, int]]) -> tuple[int, R | None]:
    """The most tokens that a sequence shares with what others have (or will have) fed, and with which of them."""
    most: tuple[int, R | None] = (0, None)
    for other, length in others:
        if other.adapter is adapter and min(length, len(tokens)) > most[0]:
            shared = min(length, in_common(tokens, other.tokens))
            if shared > most[0] and shared >= LEAST:
                most = (shared, other)
    return most
