"""A sequence of a context: its tokens, how much of it has been fed, and the numbers after its places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True, eq=False)
class Numbers:
    """What was read at a place: [V] log-probabilities, as a row of a table, and [D], the state."""

    table: tuple[Tensor, int]
    state: Tensor | None = None


@dataclass(slots=True, eq=False)
class Row:
    """A growing sequence.

    Its *places* are where numbers may be asked for: after all its tokens, and after each that was drafted and the one
    before. `numbers` holds those that are known, by the number of tokens before the place.
    """

    tokens: list[int]
    sequence: int | None = None
    """Its sequence in the context; None as long as it has none."""
    length: int = 0
    """Tokens that the context has."""
    num_drafted: int = 0
    numbers: dict[int, Numbers] = field(default_factory=dict)
    looked: dict[int, tuple[int, Numbers]] = field(default_factory=dict)
    """Candidate -> the sequence that was fed it after all tokens, and the numbers there."""
    adapter: None = None
    """Rows of one context run with one adapter, so it tells none from another (`prefixes.Fed`)."""

    @property
    def places(self) -> Iterator[int]:
        """Numbers of tokens before each place, ascending."""
        return iter(range(len(self.tokens) - self.num_drafted, len(self.tokens) + 1))

    @property
    def num_pending(self) -> int:
        """Tokens that the context does not have."""
        return len(self.tokens) - self.length

    def missing(self, *, states: bool = False) -> list[int]:
        """The places whose log-probabilities (or states) are not known."""
        found = (self.numbers.get(place) for place in self.places)
        return [
            place
            for place, known in zip(self.places, found, strict=True)
            if known is None or (states and known.state is None)
        ]

    def append(self, token_id: int) -> None:
        """One token more, for good; what was known of the places before it is of no use any more."""
        self.tokens.append(token_id)
        self.num_drafted = 0
        self._forget()

    def draft(self, token_id: int) -> None:
        """One token more, that may be taken back."""
        self.tokens.append(token_id)
        self.num_drafted += 1
        self._forget()

    def settle(self, num_kept: int) -> None:
        """Keep so many of the drafted tokens."""
        end = len(self.tokens) - self.num_drafted + num_kept
        del self.tokens[end:]
        self.num_drafted = 0
        self._forget()

    def twin(self) -> Row:
        """A row with the same tokens and numbers, and nothing fed."""
        return Row(list(self.tokens), num_drafted=self.num_drafted, numbers=dict(self.numbers))

    def _forget(self) -> None:
        """Drop numbers of what is no place."""
        kept = set(self.places)
        self.numbers = {place: known for place, known in self.numbers.items() if place in kept}
