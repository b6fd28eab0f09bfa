"""How many tokens the requests that run may hold in caches, and how much of it each of them may come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.caches import Cache, caches_of, token_bytes
from trimtab.core import Session
from trimtab.decoding.requests import Request
from trimtab.errors import PromptError


class Capacity:
    """What requests hold of the caches of a base and its guides, counted in tokens of the base's.

    A request holds its prompt and the longest answer it may get, in the base's cache and in that of each guide that
    runs. A guide's token counts for as many of the base's as it takes of memory; where a model does not say what its
    tokens take, they count as the base's.
    """

    def __init__(self, base: Session, guides: Mapping[str, Session]) -> None:
        self._base = base
        self._guides = guides
        self._shares: dict[str, float] | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of cache that a token of the base takes; 0 where its model does not say."""
        return token_bytes(self._base)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The caches of the base and of all guides, each once."""
        return caches_of([self._base, *self._guides.values()])

    @property
    def num_columns(self) -> int:
        """Tokens that there is memory for now, in all caches."""
        return sum(cache.num_columns for cache in self.caches)

    @property
    def num_bytes(self) -> int:
        """What all caches take now."""
        return sum(cache.num_bytes for cache in self.caches)

    @property
    def shares(self) -> Mapping[str, float]:
        """Guide -> what one of its tokens counts for. Measured when it is first asked for, by a forward pass."""
        if self._shares is None:
            unit = self.token_bytes
            self._shares = {
                name: token_bytes(session) / unit if unit else 1.0 for name, session in self._guides.items()
            }
        return self._shares

    def wants(self, request: Request) -> int:
        """The tokens that a request may come to hold."""
        total = float(len(request.prompt_ids) + request.max_new_tokens)
        for name, ids in request.guide_ids.items():
            total += self.shares[name] * (len(ids) + request.max_new_tokens)
        return math.ceil(total)

    def check(self, request: Request, most: int | None) -> None:
        """Raise PromptError for a request that would hold more than `most` by itself."""
        if most is not None and (wanted := self.wants(request)) > most:
            raise PromptError(
                f"Prompt and answer may come to {wanted} tokens in the caches of the model and its guides, and "
                f"{most} fit. Shorten the prompt, ask for fewer new tokens, or run fewer guides."
            )

    def fits(self, request: Request, beside: Sequence[Request], most: int | None) -> bool:
        """Whether a request may join those that run."""
        return most is None or self.wants(request) + sum(map(self.wants, beside)) <= most
