"""Guesses from the text itself: what followed the last place that ended as it ends now."""

from __future__ import annotations

from collections.abc import Sequence

SIZES = (4, 3, 2)
"""Tokens that have to be alike, most first: the longest ending that stood somewhere before is continued."""


class Lookup:
    """The endings of one growing sequence and where each stood last (prompt look-up decoding).

    A continuation that runs into the sequence's end goes on with itself, so a period is continued at any length.
    """

    def __init__(self) -> None:
        self._follows: dict[tuple[int, ...], int] = {}  # an ending -> where what followed it begins
        self._num_indexed = 0

    def next(self, tokens: Sequence[int], num: int) -> list[int]:
        """Up to `num` tokens that may follow `tokens`, which begin with those of the call before."""
        for end in range(max(self._num_indexed, 1), len(tokens)):
            for size in SIZES:
                if size <= end:
                    self._follows[tuple(tokens[end - size : end])] = end
        self._num_indexed = len(tokens)
        for size in SIZES:
            start = self._follows.get(tuple(tokens[len(tokens) - size :])) if size <= len(tokens) else None
            if start is not None:
                draft: list[int] = []
                for place in range(start, start + num):
                    draft.append(tokens[place] if place < len(tokens) else draft[place - len(tokens)])
                return draft
        return []
