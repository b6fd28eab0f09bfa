"""Sessions made of other sessions (one read in another way, several whose rows go together), or of tokens alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from trimtab.caches import Cache, caches_of, num_known, token_bytes
from trimtab.core import Candidates, Session, TokenIds
from trimtab.drafting import drafting, drafts
from trimtab.errors import OptionError, about, naming, unknown_name

S = TypeVar("S", bound=Session)


@runtime_checkable
class PolicySession(Protocol):
    """A guide's session that is a policy of its own, whatever of it is weighed."""

    def policy(self, candidates: Candidates) -> Tensor:
        """[B, K] float32: the guide's own log-probabilities; −inf where it has none. Changes nothing observable."""


def check_masks(plausibility: Mapping[str, float], guides: Mapping[str, object]) -> None:
    """Raise OptionError for a plausibility mask on a guide that is unknown or has no probabilities of its own."""
    for name, alpha in plausibility.items():
        if name not in guides:
            error = naming(OptionError, "{guide_plausibility}: {0}", unknown_name("guide", name, guides))
            raise about(f"guide_plausibility.{name}", error)
        if alpha and not getattr(guides[name], "is_policy", False):
            error = naming(
                OptionError,
                "{guide_plausibility} gives guide {0} {1:g}, and it has no probabilities of its own to be measured by. "
                "Accepted: guides that are language models or sentences, run by an engine that has their logits (the "
                "built-in one). Leave it out.",
                name,
                alpha,
            )
            raise about(f"guide_plausibility.{name}", error)


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


class TokenRows:
    """Rows of which nothing is kept but their tokens; a subclass says what is read off them, and may refuse a row."""

    can_draft = True

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._drafted: dict[int, int] = {}  # row -> how many of its last tokens may be taken back

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        rows = [tuple(map(int, prompt)) for prompt in prompts]
        for row in rows:
            self._check(row)
        self._rows.extend(rows)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        longer = {row: (*self._rows[row], token) for row, token in zip(rows.tolist(), token_ids.tolist(), strict=True)}
        for tokens in longer.values():
            self._check(tokens)
        self._rows = [longer.get(row, tokens) for row, tokens in enumerate(self._rows)]

    def keep(self, rows: Tensor) -> None:
        self._rows = [self._rows[row] for row in rows.tolist()]

    def draft(self, rows: Tensor, token_ids: Tensor) -> None:
        self.advance(rows, token_ids)
        for row in rows.tolist():
            self._drafted[row] = self._drafted.get(row, 0) + 1

    def settle(self, counts: Tensor) -> None:
        self._rows = [self._after(row, count) for row, count in enumerate(counts.tolist())]
        self._drafted = {}

    def _some(self, rows: Tensor | None, drafted: Tensor | None = None) -> list[tuple[int, ...]]:
        """The tokens of some rows [N] or of all, after so many [N] of their drafted ones or after all."""
        if rows is None:
            return self._rows
        if drafted is None:
            return [self._rows[row] for row in rows.tolist()]
        return [self._after(row, num) for row, num in zip(rows.tolist(), drafted.tolist(), strict=True)]

    def _after(self, row: int, num_drafted: int) -> tuple[int, ...]:
        tokens = self._rows[row]
        return tokens[: len(tokens) - self._drafted.get(row, 0) + num_drafted]

    def _check(self, token_ids: TokenIds) -> None:
        """Raise for a row that may not be."""
        return  # any may, unless a subclass says otherwise
