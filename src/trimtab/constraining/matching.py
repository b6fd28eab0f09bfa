"""Where a request stands in its constraint, and which tokens may come next there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from trimtab.errors import DeadEndError


class Compiled:
    """A constraint against a model's vocabulary; it never changes."""

    def __init__(self, matcher: LLMatcher, vocabulary: LLTokenizer, vocab_size: int) -> None:
        self._matcher = matcher
        self.vocabulary = vocabulary
        self.vocab_size = vocab_size

    def start(self) -> LLMatcher:
        """A matcher that has read nothing."""
        return self._matcher.deep_copy()


class Matching:
    """A request's place in its constraint: a function of its answer's tokens alone, which may be any at each call.

    What is remembered, a matcher that has read some of them, changes nothing. It belongs to one thread.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._matcher = compiled.start()
        self._read: list[int] = []

    def allowed(self, token_ids: Sequence[int]) -> Tensor:
        """[V] bool: tokens after which the answer can still become an accepted text; an end of a sequence where it is
        one. Raises DeadEndError where the answer has left the constraint, or where it has become too involved."""
        self._go_to(token_ids)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise self._lost()
        mask = np.unpackbits(bits, bitorder="little").view(np.bool_)
        allowed = torch.zeros(self._compiled.vocab_size, dtype=torch.bool)
        width = min(len(mask), len(allowed))
        allowed[:width] = torch.from_numpy(mask[:width])
        return allowed

    def num_accepted(self, token_ids: Sequence[int], next_ids: Sequence[int]) -> int:
        """How many of the next tokens continue an answer. Raises DeadEndError as `allowed` does."""
        self._go_to(token_ids)
        return int(self._matcher.validate_tokens(list(next_ids)))

    def certain(self, token_ids: Sequence[int]) -> list[int]:
        """Tokens of the text that every accepted answer goes on with here, the longest first: a guess, since the same
        text may be cut otherwise. None where several texts go on. Raises DeadEndError as `allowed` does."""
        self._go_to(token_ids)
        text = self._matcher.compute_ff_bytes().decode(errors="ignore")
        return list(self._compiled.vocabulary.greedy_tokenize(text)) if text else []

    def begins(self) -> bool:
        """Whether an answer can begin."""
        try:
            return bool(self.allowed(()).any())
        except DeadEndError:
            return False

    def _go_to(self, token_ids: Sequence[int]) -> None:
        """Have read exactly these tokens."""
        wanted = list(token_ids)
        shared = len(self._read) if wanted[: len(self._read)] == self._read else _num_shared(wanted, self._read)
        if shared < len(self._read) and not self._matcher.rollback(len(self._read) - shared):
            self._forget()
            shared = 0
        self._read = self._read[:shared]
        if shared < len(wanted) and not self._matcher.consume_tokens(wanted[shared:]):
            raise self._lost()
        self._read = wanted

    def _lost(self) -> DeadEndError:
        self._forget()
        return DeadEndError(
            "The answer cannot go on as its constraint asks: what came before has left it, or it is too involved to be "
            "followed further. Give a simpler one."
        )

    def _forget(self) -> None:
        self._matcher, self._read = self._compiled.start(), []


def _num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens two lists begin."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
