"""A session on a GGUF file: rows of a trunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.core import TokenIds
from trimtab.models.forward.trunk import check_length
from trimtab.models.llama.row import Numbers, Row
from trimtab.models.llama.trunk import LlamaTrunk


class LlamaTrunks:
    """The trunks of sessions that were opened beside each other, one for each model among them."""

    def __init__(self) -> None:
        self._trunks: dict[int, tuple[object, LlamaTrunk]] = {}

    def of(self, model: object, make: LlamaTrunk) -> LlamaTrunk:
        """The trunk of a model: the one that is there, or `make`."""
        return self._trunks.setdefault(id(model), (model, make))[1]


class LlamaSession:
    """A model's session whose rows are sequences of one context.

    `beside` is where sessions that are opened beside this one find their trunks.
    """

    can_draft = True

    def __init__(self, trunk: LlamaTrunk, beside: LlamaTrunks) -> None:
        self.trunk = trunk
        self.beside = beside
        self._rows: list[Row] = []

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes in the context."""
        return self.trunk.file.token_bytes

    @property
    def caches(self) -> tuple[LlamaTrunk, ...]:
        """The trunk."""
        return (self.trunk,)

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self._rows.extend(self.trunk.join(prompts))

    def known(self, prompt: TokenIds) -> int:
        """How much of a prompt a new row could share with rows that have been fed."""
        return self.trunk.known(prompt)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        for row, token_id in self._longer(rows, token_ids):
            self.trunk.append(row, token_id)

    def draft(self, rows: Tensor, token_ids: Tensor) -> None:
        """One drafted token more in each named row (`drafting.Drafting`)."""
        for row, token_id in self._longer(rows, token_ids):
            self.trunk.draft(row, token_id)

    def settle(self, counts: Tensor) -> None:
        """Keep the first counts[i] drafted tokens of row i, and take the others back."""
        for row, count in zip(self._rows, counts.tolist(), strict=True):
            self.trunk.settle(row, count)

    def keep(self, rows: Tensor) -> None:
        wanted = rows.tolist()
        kept: list[Row] = []
        for position, index in enumerate(wanted):
            first = index not in wanted[:position]
            kept.append(self._rows[index] if first else self.trunk.fork(self._rows[index]))
        for index, row in enumerate(self._rows):
            if index not in wanted:
                self.trunk.leave(row)
        self._rows = kept

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        """[N, V] float32, of some rows or of all."""
        self.trunk.flush()
        return self._tables([row.numbers[len(row.tokens)] for row in self._some(rows)])

    def logprobs_after(self, rows: Tensor, drafted: Tensor) -> Tensor:
        """[N, V] float32, of some rows after so many [N] of their drafted tokens."""
        self.trunk.flush()
        return self._tables(self._places(rows, drafted))

    def context_after(self, rows: Tensor, drafted: Tensor) -> Tensor:
        """[N, D], of some rows after so many [N] of their drafted tokens."""
        self.trunk.flush(states=True)
        return self._states(self._places(rows, drafted))

    def _places(self, rows: Tensor, drafted: Tensor) -> list[Numbers]:
        """What was read of rows that have been fed, after so many of their drafted tokens."""
        found = []
        for index, count in zip(rows.tolist(), drafted.tolist(), strict=True):
            row = self._rows[index]
            found.append(row.numbers[len(row.tokens) - row.num_drafted + count])
        return found

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """[N, K] -> [N, K, D]."""
        return self.trunk.peek(self._some(rows), token_ids)

    def context(self, rows: Tensor | None = None) -> Tensor:
        """[N, D], of some rows or of all."""
        self.trunk.flush(states=True)
        return self._states([row.numbers[len(row.tokens)] for row in self._some(rows)])

    def _states(self, places: Sequence[Numbers]) -> Tensor:
        found = [place.state for place in places if place.state is not None]
        return torch.stack(found) if found else torch.empty(0, self.trunk.file.hidden_size)

    def _longer(self, rows: Tensor, token_ids: Tensor) -> list[tuple[Row, int]]:
        """Rows and the token that each gets. Raises PromptError where one of them may not become longer."""
        longer = [(self._rows[index], token) for index, token in zip(rows.tolist(), token_ids.tolist(), strict=True)]
        for row, _ in longer:
            check_length(range(len(row.tokens) + 1), self.trunk.file.max_length)
        return longer

    def _some(self, rows: Tensor | None) -> list[Row]:
        return self._rows if rows is None else [self._rows[row] for row in rows.tolist()]

    def _tables(self, places: Sequence[Numbers]) -> Tensor:
        """[N, V] of some places; no copy where they are all rows of one table, in order."""
        if not places:
            return torch.empty(0, self.trunk.file.vocab_size)
        table, start = places[0].table
        indices = [place.table[1] for place in places]
        if all(place.table[0] is table for place in places):
            if indices == list(range(start, start + len(indices))):
                return table[start : start + len(indices)]
            return table[torch.tensor(indices)]
        return torch.stack([place.table[0][index] for place, index in zip(places, indices, strict=True)])
