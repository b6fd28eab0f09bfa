"""What sessions may offer besides: what their rows share, and what they take of memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from trimtab.core import Session, TokenIds


@runtime_checkable
class Sharing(Protocol):
    """What a session may offer besides: rows that begin alike cost less than their prompts' lengths."""

    def known(self, prompt: TokenIds) -> int:
        """How many of a prompt's first tokens need not be fed again, as the rows are now."""


def num_known(session: Session, prompt: TokenIds) -> int:
    """How many of a prompt's first tokens cost a session nothing."""
    return session.known(prompt) if isinstance(session, Sharing) else 0


class Cache(Protocol):
    """Where sessions keep what they remember of their rows' tokens."""

    @property
    def num_columns(self) -> int:
        """Tokens that there is memory for now, over all rows; no fewer than the rows have."""

    @property
    def num_bytes(self) -> int:
        """What that takes."""


@runtime_checkable
class Timed(Protocol):
    """What a cache may offer besides: what passes over its rows cost."""

    @property
    def num_rows(self) -> int:
        """How many rows it holds, those of all sessions."""

    def pass_cost(self, num_tokens: int) -> float:
        """What a pass costs that reads so many tokens over all rows: in seconds, as passes took lately."""


@runtime_checkable
class Caching(Protocol):
    """What a session may offer besides: what its rows take of memory."""

    @property
    def token_bytes(self) -> int:
        """Bytes of caches that one token of one row takes."""

    @property
    def caches(self) -> tuple[Cache, ...]:
        """Where its rows are kept, beside those of other sessions maybe."""


def token_bytes(session: Session) -> int:
    """Bytes of caches that one token of one row takes; 0 for a session that does not say."""
    return session.token_bytes if isinstance(session, Caching) else 0


def caches_of(sessions: Iterable[Session]) -> tuple[Cache, ...]:
    """The caches that sessions keep their rows in, each once."""
    found = [cache for session in sessions if isinstance(session, Caching) for cache in session.caches]
    return tuple({id(cache): cache for cache in found}.values())
