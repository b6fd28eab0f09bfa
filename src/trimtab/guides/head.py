"""A head: a low-rank map from the base's final state to logits, added to the base's own; it has no row and no cache.

score(y) = (B A h)_y, where h [D] is the state that the base's own output head reads (after the final norm, at the
position that predicts y), A is [r, D] and B [V, r]; π ∝ π_base · exp(w · B A h). It is what PALC's released code is
(ICLR 2026; rank 256, no bias, no activation): a LoRA of the output head. A token costs two thin products besides the
base's pass.

Where it differs from that code: its fixed factor of 5 is the weight, which is the request's; the map is added to the
logits as the model gives them, after soft caps and scales, in float32; rows of one batch may have different heads,
weights, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trimtab.core import Candidates, GuideSession, LanguageModel, ModelSession, Prompt, TokenIds


class StateMap(Protocol):
    """What maps states to scores of tokens; `models.adapters.low_rank_head.LowRankHead` is one."""

    def scores(self, states: Tensor) -> Tensor:
        """[N, D] states -> [N, V] float32 scores."""

    def check(self, base: LanguageModel) -> None:
        """Raise BaseMismatchError or VocabularyMismatchError for a model whose states it cannot read."""

    def to(self, device: torch.device) -> StateMap:
        """The same map on a device."""

    def save(self, directory: Path) -> None:
        """Write its weights into an existing directory."""

    def facts(self) -> Mapping[str, object]:
        """What a card says of it."""


@dataclass(frozen=True)
class Head:
    """A guide that scores every token by a map of the base's final state. It runs on the model that it was trained on.

    `card` is what a loaded guide's card says besides.

    >>> import torch
    >>> from trimtab import Decoder, Head, LowRankHead, TabularModel
    >>> base = TabularModel.random(9, seed=0)
    >>> up = torch.zeros(9, 1)
    >>> up[5] = 50.0
    >>> head = Head(LowRankHead(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), up))  # token 5, by the state's first number
    >>> decoder = Decoder(base, {"head": head})
    >>> how = {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True}
    >>> found = [next(iter(decoder.generate("ab", weights={"head": w}, **how))).token_ids for w in (1.0, -1.0)]
    >>> found.count((5,))
    1
    """

    map: StateMap
    weight: float = 1.0
    card: Mapping[str, Any] = field(default_factory=dict)

    needs_hidden = False
    needs_context = True
    max_length = None
    selection = None

    def bind(self, base: LanguageModel) -> Head:
        """The head on the base's device. Raises BaseMismatchError or VocabularyMismatchError as `StateMap.check`."""
        self.map.check(base)
        there = self.map.to(base.device)
        return self if there is self.map else replace(self, map=there)

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return base_ids

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        return HeadSession(self.map)

    def save_files(self, directory: Path) -> None:
        """Write the head's weights into an existing directory (see `loading.save_guide`)."""
        self.map.save(directory)

    def facts(self) -> dict[str, object]:
        """What the head's card (`guide.json`) says of it."""
        return {"format": 1, "kind": "head", **self.card, **self.map.facts()}


class HeadSession:
    """The scores of a head. It remembers nothing but how many rows there are: each score is a function of one state."""

    can_draft = True

    def __init__(self, state_map: StateMap) -> None:
        self._map = state_map
        self._num_rows = 0

    @property
    def num_rows(self) -> int:
        return self._num_rows

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self._num_rows += len(prompts)

    def known(self, prompt: TokenIds) -> int:
        """All of it: it reads no prompts."""
        return len(prompt)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        pass

    def keep(self, rows: Tensor) -> None:
        self._num_rows = len(rows)

    def draft(self, rows: Tensor, token_ids: Tensor) -> None:
        pass

    def settle(self, counts: Tensor) -> None:
        pass

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] (B A h)_y, h the base's state before the candidates."""
        assert candidates.context is not None, "a head reads the state before the candidates"
        with torch.no_grad():
            scores = self._map.scores(candidates.context).to(candidates.logprobs.device)
        return candidates.gather(scores)
