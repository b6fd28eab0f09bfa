"""What sessions may offer besides: tokens that are read ahead and may be taken back.

A step can bring several tokens of a row where somebody guesses the next ones: the model reads all of them in one pass,
and those that it would have drawn itself stay (Leviathan et al., arXiv 2211.17192; here without a random number of its
own, see `decoding.drafts`). For this a session needs two verbs more, and numbers after each of the tokens.

The laws (`trimtab.testing` checks them):

* what is read after j drafted tokens is what is read after `advance` by these j;
* `draft` and then `settle(counts)` equals `advance` by the first counts[i] tokens of each row i.

What is read is log-probabilities and, where a session offers them (`StatesAfterDrafts`), states.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor

from trimtab.core import Candidates, ModelSession, Session


@runtime_checkable
class Drafting(Session, Protocol):
    """Rows whose last tokens may be taken back. Between `draft` and `settle` there is nothing but reading.

    A guide's session that drafts reads `Candidates.drafted` in `score`.
    """

    @property
    def can_draft(self) -> bool:
        """Whether it does: a session that is made of others may find that one of them does not."""

    def draft(self, rows: Tensor, token_ids: Tensor) -> None:
        """Append one token to each named row, as `advance` does, until `settle`. Several calls append several."""

    def settle(self, counts: Tensor) -> None:
        """[B] int64: of row i the first counts[i] drafted tokens stay; the others never were."""


@runtime_checkable
class DraftingModelSession(ModelSession, Drafting, Protocol):
    """A model's session that drafts."""

    def logprobs_after(self, rows: Tensor, drafted: Tensor) -> Tensor:
        """[N, V] float32: as `logprobs`, of rows [N] after the first `drafted` [N] of their drafted tokens."""


@runtime_checkable
class StatesAfterDrafts(DraftingModelSession, Protocol):
    """A model's session that drafts and has the state between drafted tokens too, for guides that read states."""

    def context_after(self, rows: Tensor, drafted: Tensor) -> Tensor:
        """[N, D]: as `context`, of rows [N] after the first `drafted` [N] of their drafted tokens."""


@runtime_checkable
class Foreseeing(Protocol):
    """What a session of a guide that is a model of its own may offer: the policy it steers to, without the base."""

    def foreseen(self, rows: Tensor, drafted: Tensor, weights: Tensor) -> Tensor:
        """[N, V] log-probabilities, up to a constant, at the guide's weights [N]; see `logprobs_after`."""


def drafts(session: Session) -> TypeGuard[Drafting]:
    """Whether tokens of a session's rows may be taken back."""
    return isinstance(session, Drafting) and session.can_draft


def drafting(session: Session) -> Drafting:
    """The session as one that drafts. Raises TypeError where it does not: ask `drafts` before."""
    if not drafts(session):
        raise _does_not_draft(session)
    return session


def drafting_model(session: ModelSession) -> DraftingModelSession:
    """The session as a model's that drafts. Raises TypeError where it does not."""
    if not (isinstance(session, DraftingModelSession) and session.can_draft):
        raise _does_not_draft(session)
    return session


def has_states_after_drafts(session: ModelSession) -> TypeGuard[StatesAfterDrafts]:
    """Whether a model's session says its states after drafted tokens."""
    return isinstance(session, StatesAfterDrafts) and session.can_draft


def logprobs_for(session: ModelSession, candidates: Candidates) -> Tensor:
    """[B, V]: what a session says of the rows of candidates of a guide that tilts."""
    if candidates.drafted is None or candidates.rows is None:
        return session.logprobs()
    return drafting_model(session).logprobs_after(candidates.rows, candidates.drafted)


def _does_not_draft(session: Session) -> TypeError:
    return TypeError(f"{type(session).__name__} does not draft.")
