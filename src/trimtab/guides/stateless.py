"""A guide of one's own in one method: it is given what has been written and the candidates, and scores them.

What it does not know: anything from one step to the next. A guide that computes something expensive for each token
keeps it in a session of its own instead (`core.Guide`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trimtab.core import Candidates, LanguageModel, ModelSession, Prompt, Selection, TokenIds
from trimtab.sessions import TokenRows

GuideT = TypeVar("GuideT", bound="StatelessGuide")


class StatelessGuide(ABC):
    """A guide that is a function of the tokens so far; a subclass writes `score`, and may set `weight`.

    >>> import torch
    >>> from trimtab import Decoder, StatelessGuide, TabularModel
    >>> class NoRepeat(StatelessGuide):
    ...     def score(self, rows, candidates):
    ...         seen = [[float(token in row) for token in ids] for row, ids in zip(rows, candidates.token_ids.tolist())]
    ...         return -torch.tensor(seen)
    >>> decoder = Decoder(TabularModel.random(9, seed=0), {"fresh": NoRepeat()})
    >>> [answer] = decoder.generate("a", weights={"fresh": 50.0}, max_new_tokens=5, ignore_eos=True, seed=1)
    >>> len({*answer.prompt_ids, *answer.token_ids})  # of six tokens
    6
    """

    weight: float = 1.0
    """In a request that does not name it."""
    needs_hidden = False
    needs_context = False
    max_length: int | None = None
    selection: Selection | None = None

    @abstractmethod
    def score(self, rows: Sequence[TokenIds], candidates: Candidates) -> Tensor:
        """[B, K] float32 scores in log space of B rows' candidates, `candidates.token_ids` [B, K].

        `rows` holds every token of each row so far, its prompt included.
        """

    def bind(self: GuideT, base: LanguageModel) -> GuideT:
        """Itself. A guide that reads the base's tokenizer returns one that knows it."""
        return self

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        """The base's own."""
        return base_ids

    def open(self, beside: ModelSession | None = None) -> StatelessSession:
        """A session that keeps the tokens of its rows, and nothing else."""
        return StatelessSession(self)


class StatelessSession(TokenRows):
    """The tokens of each row, kept for a `StatelessGuide`."""

    def __init__(self, guide: StatelessGuide) -> None:
        super().__init__()
        self._guide = guide

    def known(self, prompt: TokenIds) -> int:
        """All of a prompt: there is nothing to feed (`caches.Sharing`)."""
        return len(prompt)

    def score(self, candidates: Candidates) -> Tensor:
        """What the guide says of each row's candidates."""
        scores = self._guide.score(self._some(candidates.rows, candidates.drafted), candidates)
        return scores.to(dtype=torch.float32, device=candidates.logprobs.device)
