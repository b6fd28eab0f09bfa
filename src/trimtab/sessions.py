"""Sessions made of other sessions: one that is read in another way, or several whose rows go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import Tensor

from trimtab.caches import Cache, caches_of, num_known, token_bytes
from trimtab.core import Session, TokenIds
from trimtab.drafting import drafting, drafts

S = TypeVar("S", bound=Session)


class SessionView(Generic[S]):
    """The rows of one session, unchanged; a subclass says what is read off them.

    `reads_drafts` of a subclass says that its `score` reads `Candidates.drafted`.
    """

    reads_drafts = False

    def __init__(self, session: S) -> None:
        self._session = session

    @property
    def num_rows(self) -> int:
        return self._session.num_rows

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self._session.admit(prompts)

    @property
    def token_bytes(self) -> int:
        return token_bytes(self._session)

    @property
    def caches(self) -> tuple[Cache, ...]:
        return caches_of([self._session])

    def known(self, prompt: TokenIds) -> int:
        return num_known(self._session, prompt)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        self._session.advance(rows, token_ids)

    def keep(self, rows: Tensor) -> None:
        self._session.keep(rows)

    @property
    def can_draft(self) -> bool:
        return self.reads_drafts and drafts(self._session)

    def draft(self, rows: Tensor, token_ids: Tensor) -> None:
        drafting(self._session).draft(rows, token_ids)

    def settle(self, counts: Tensor) -> None:
        drafting(self._session).settle(counts)


class SessionGroup:
    """Several sessions that hold the same sequences, row by row; a subclass says what is read off them.

    `reads_drafts` as in `SessionView`.
    """

    reads_drafts = False

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = tuple(sessions)

    @property
    def num_rows(self) -> int:
        return self._sessions[0].num_rows

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        for session in self._sessions:
            session.admit(prompts)

    @property
    def token_bytes(self) -> int:
        """What a token takes in all of them together."""
        return sum(map(token_bytes, self._sessions))

    @property
    def caches(self) -> tuple[Cache, ...]:
        return caches_of(self._sessions)

    def known(self, prompt: TokenIds) -> int:
        """How many of a prompt's first tokens none of them has to feed."""
        return min(num_known(session, prompt) for session in self._sessions)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        for session in self._sessions:
            session.advance(rows, token_ids)

    def keep(self, rows: Tensor) -> None:
        for session in self._sessions:
            session.keep(rows)

    @property
    def can_draft(self) -> bool:
        return self.reads_drafts and all(map(drafts, self._sessions))

    def draft(self, rows: Tensor, token_ids: Tensor) -> None:
        for session in self._sessions:
            drafting(session).draft(rows, token_ids)

    def settle(self, counts: Tensor) -> None:
        for session in self._sessions:
            drafting(session).settle(counts)
