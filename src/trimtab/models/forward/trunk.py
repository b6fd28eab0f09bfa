"""Sessions of one set of weights that share their forward passes.

A `Trunk` owns the rows of all sessions opened beside each other: the base's and those of guides that are adapters of
the base (or the base itself with another prompt). `advance` only records a token; when somebody asks for numbers, one
forward pass runs over every row that has tokens waiting, whichever session it belongs to. So a guide that is a LoRA of
the base costs one more row, not one more model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trimtab.core import TokenIds
from trimtab.errors import PromptError
from trimtab.models.forward.grouping import RowAdapter, by_adapter, by_shelf, groups
from trimtab.models.forward.prefixes import lend, shared_with
from trimtab.models.forward.row_cache import Layout, RowCache
from trimtab.models.forward.shelves import Reading, Row, Shelves
from trimtab.models.forward.times import PassTimes, guessed_elsewhere

_PIECE = 2048
"""Tokens of one row in one prefill pass: bounds its mask and what attention makes of it."""
_LEAST_WORTH, _WORTH = 1024, 2048
"""Padded columns that cost what one pass more does: at least, and at most beside few tokens."""
_TRAFFIC = 4
"""How often a pass moves a padded column: it is read, and copied for the heads that share it."""


class Network(Protocol):
    """What a trunk needs of the weights."""

    @property
    def device(self) -> torch.device: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def vocab_size(self) -> int: ...

    hidden_size: int

    @property
    def weight_bytes(self) -> int:
        """What a forward pass reads of weights."""

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes in the cache."""

    def forward(
        self, token_ids: Tensor, layout: Layout, cache: RowCache, adapters: Sequence[tuple[RowAdapter, list[int]]]
    ) -> Tensor:
        """[B, Q] ids -> [B, Q, D] states after the final norm."""

    def head(self, hidden: Tensor, adapters: Sequence[tuple[RowAdapter, list[int]]] = ()) -> Tensor:
        """[N, D] states -> [N, V] float32 log-probabilities; `adapters` as in `forward`, of the states."""


class Trunk:
    """The rows of all sessions that share one network, and the cache they live in."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._cache = RowCache()
        self._shelves = Shelves(self._cache)
        self._rows: list[Row] = []
        self._others: dict[int, Trunk] = {}
        self.times = PassTimes(None if network.device.type == "cpu" else guessed_elsewhere)
        """What passes take."""
        self.num_passes = 0
        """Passes that fed waiting tokens so far; those that only looked at candidates are not counted."""
        self.num_fed = 0
        """Tokens that these passes fed, padding left out."""

    @property
    def num_rows(self) -> int:
        """How many rows all sessions have together."""
        return len(self._rows)

    @property
    def num_shelves(self) -> int:
        """How many shelves the rows lie on."""
        return len(self._cache.sizes)

    @property
    def num_columns(self) -> int:
        """Columns that the cache holds over all rows, those that no row fills included."""
        return self._cache.num_columns

    @property
    def num_bytes(self) -> int:
        """What the cache takes."""
        return self._cache.num_bytes

    def pass_cost(self, num_tokens: int) -> float:
        """What a pass over so many tokens of all rows takes, in seconds; a guess where none was measured."""
        return self.times.seconds(num_tokens)

    def of(self, network: Network) -> Trunk:
        """The trunk of a network among the sessions opened beside this one's: this one itself, or another's.

        So guides that run on one model of their own share its passes, as those that run on the base share the base's.
        """
        if network is self.network:
            return self
        return self._others.setdefault(id(network), Trunk(network))

    def join(self, prompts: Sequence[TokenIds], adapter: RowAdapter | None, *, tables: bool = True) -> list[Row]:
        for prompt in prompts:
            check_length(prompt, self.network.max_length)
        rows = [Row(list(map(int, prompt)), adapter, tables=tables) for prompt in prompts]
        self._rows.extend(rows)
        return rows

    def known(self, prompt: TokenIds, adapter: RowAdapter | None) -> int:
        """How many tokens of a prompt, its last one left out, a row of this adapter has been fed."""
        return min(shared_with(list(prompt), adapter, [row for row in self._rows if row.length]), len(prompt) - 1)

    @torch.inference_mode()
    def fork(self, row: Row) -> Row:
        """A new row that continues where this one stands."""
        self._shelves.settle([row])
        twin = Row(list(row.tokens), row.adapter, tables=row.tables)
        twin.length, twin.hidden, twin.table = row.length, row.hidden, row.table
        twin.num_drafted, twin.before = row.num_drafted, list(row.before)
        self._shelves.fork(row, twin)
        self._rows.append(twin)
        return twin

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Free a row and its place in the cache."""
        self._shelves.remove(row)
        index, last = self._rows.index(row), self._rows.pop()
        if last is not row:
            self._rows[index] = last

    @torch.inference_mode()
    def feed(self) -> None:
        """Feed every waiting token."""
        self._feed(self._rows)

    @torch.inference_mode()
    def flush(self) -> None:
        """Feed every waiting token, then compute every missing log-probability."""
        self.feed()
        missing: list[tuple[Row, Row | Reading]] = []
        for row in self._rows:
            places: list[Row | Reading] = [*row.before, row] if row.tables else []
            missing += [(row, place) for place in places if place.table is None]
        if missing:
            states = [place.hidden for _, place in missing]
            table = self.network.head(torch.stack(states), by_adapter([row for row, _ in missing]))  # type: ignore[arg-type]
            for index, (_, place) in enumerate(missing):
                place.table = (table, index)

    @torch.inference_mode()
    def peek(self, rows: Sequence[Row], token_ids: Tensor) -> Tensor:
        """[B, K] candidates -> [B, K, D]: a pass in which each candidate sees its row's past and itself."""
        for row in rows:
            check_length(range(len(row.tokens) + 1), self.network.max_length)
        self._feed(rows)
        token_ids = token_ids.to(self.network.device)
        parts = [(order, self._look([rows[at] for at in order], token_ids[order])) for order in by_shelf(rows)]
        if not parts:
            return torch.empty(*token_ids.shape, self.network.hidden_size, device=self.network.device)
        out = torch.cat([hidden for _, hidden in parts])
        return out[torch.tensor([at for order, _ in parts for at in order], device=out.device).argsort()]

    def _look(self, batch: Sequence[Row], token_ids: Tensor) -> Tensor:
        """`peek` for rows of one shelf, by slot."""
        taken = [row.num_peeked for row in batch]
        width = token_ids.shape[1]
        [shelf] = {row.shelf for row in batch}
        lengths = [row.length for row in batch]
        layout = Layout.branch([row.slot for row in batch], lengths, taken, width, self.network.device, shelf)
        self._shelves.use(shelf, max(taken) + width)
        hidden = self._run(batch, token_ids, layout)
        for row, ids, states, used in zip(batch, token_ids.tolist(), hidden, taken, strict=True):
            for offset, token_id in enumerate(ids):
                row.peeked.setdefault(token_id, (row.length + used + offset, states[offset]))
        return hidden

    def _feed(self, rows: Sequence[Row]) -> None:
        """Feed the waiting tokens of rows; what begins alike is fed once."""
        self._shelves.arrange(self._rows, self._worth())
        left = [row for row in rows if row.num_pending]
        while left:
            loans, later = lend([row for row in left if not row.length], [row for row in self._rows if row.length])
            self._take_over(loans)
            postponed = {id(row) for row in later}
            now = [row for row in left if row.num_pending and id(row) not in postponed]
            for group in (group for order in by_shelf(now) for group in groups([now[at] for at in order])):
                while any(row.num_pending for row in group):
                    self._extend(group)
            left = later

    def _worth(self) -> int:
        """How many padded columns cost what one pass more does: as many as move as many bytes as the weights have.

        No more than a sixteenth of all that is held, or `_WORTH`, for the sake of memory.
        """
        num_tokens = sum(len(row.tokens) for row in self._rows)
        most = max(_WORTH, (1 << num_tokens.bit_length()) // 32)  # a power of two, so that it seldom changes
        token_bytes = self._cache.token_bytes
        if not token_bytes:
            return most
        return min(most, max(_LEAST_WORTH, self.network.weight_bytes // (_TRAFFIC * token_bytes)))

    def _take_over(self, loans: Sequence[tuple[Row, Row, int]]) -> None:
        """Rows begin with what others have fed: all of it where they are the same, else all but their last token and,
        since numbers are asked for after each of them, those that are drafted."""
        if not loans:
            return
        self._cache.copy(
            [
                (donor.place, row.place, shared)
                for row, donor, shared in loans
                if donor.place is not None and row.place is not None
            ]
        )
        for row, donor, shared in loans:
            row.length = min(shared, len(row.tokens) - row.num_drafted - 1)
            if shared == len(row.tokens) == donor.length and donor.hidden is not None and not row.num_drafted:
                row.length, row.hidden, row.table = shared, donor.hidden, donor.table

    def _extend(self, rows: Sequence[Row]) -> None:
        """One pass that feeds the waiting tokens of rows of a shelf, of a long row the first `_PIECE`.

        Shorter ones are padded on the right, past their end.
        """
        batch = sorted(rows, key=lambda row: row.slot)
        [shelf] = {row.shelf for row in batch}
        pieces = [row.tokens[row.length : row.length + _PIECE] for row in batch]
        width = max(map(len, pieces))
        ids = [piece + [row.tokens[-1]] * (width - len(piece)) for row, piece in zip(batch, pieces, strict=True)]
        device = self.network.device
        layout = Layout.extend([row.slot for row in batch], [row.length for row in batch], width, device, shelf)
        hidden = self._run(batch, torch.tensor(ids, device=device), layout)
        self.num_passes += 1
        self.num_fed += sum(map(len, pieces))
        for row, piece, states in zip(batch, pieces, hidden, strict=True):
            row.note(states, len(piece))

    def _run(self, batch: Sequence[Row], token_ids: Tensor, layout: Layout) -> Tensor:
        self._cache.begin(layout)
        started = time.perf_counter()
        hidden = self.network.forward(token_ids, layout, self._cache, by_adapter(batch))
        if self.network.device.type == "cpu":
            self.times.note(token_ids.numel(), time.perf_counter() - started)
        return hidden


class TrunkSession:
    """A model's session whose rows live in a trunk."""

    can_draft = True

    def __init__(self, trunk: Trunk, adapter: RowAdapter | None = None, *, tables: bool = True) -> None:
        self.trunk = trunk
        self._adapter = adapter
        self._tables = tables
        self._rows: list[Row] = []

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes in the cache."""
        return self.trunk.network.token_bytes

    @property
    def caches(self) -> tuple[Trunk, ...]:
        """The trunk."""
        return (self.trunk,)

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self._rows.extend(self.trunk.join(prompts, self._adapter, tables=self._tables))

    def known(self, prompt: TokenIds) -> int:
        """How much of a prompt a new row could take over from rows that have been fed."""
        return self.trunk.known(prompt, self._adapter)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        limit = self.trunk.network.max_length
        for index in rows.tolist():
            check_length(range(len(self._rows[index].tokens) + 1), limit)
        for index, token_id in zip(rows.tolist(), token_ids.tolist(), strict=True):
            self._rows[index].append(token_id)

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
        return self._table_of(self._some(rows))

    def draft(self, rows: Tensor, token_ids: Tensor) -> None:
        """One drafted token more in each named row (`drafting.Drafting`)."""
        limit = self.trunk.network.max_length
        for index in rows.tolist():
            check_length(range(len(self._rows[index].tokens) + 1), limit)
        for index, token_id in zip(rows.tolist(), token_ids.tolist(), strict=True):
            self._rows[index].draft(token_id)

    def settle(self, counts: Tensor) -> None:
        """Keep the first counts[i] drafted tokens of row i, and take the others back."""
        for row, count in zip(self._rows, counts.tolist(), strict=True):
            row.take_back(row.num_drafted - count)

    def logprobs_after(self, rows: Tensor, drafted: Tensor) -> Tensor:
        """[N, V] float32, of some rows after so many [N] of their drafted tokens."""
        self.trunk.flush()
        return self._table_of(self._places(rows, drafted))

    def context_after(self, rows: Tensor, drafted: Tensor) -> Tensor:
        """[N, D], of some rows after so many [N] of their drafted tokens."""
        self.trunk.feed()
        return self._states_of(self._places(rows, drafted))

    def _places(self, rows: Tensor, drafted: Tensor) -> list[Row | Reading]:
        """Where numbers are read, of rows that have been fed, after so many of their drafted tokens."""
        places: list[Row | Reading] = []
        for index, count in zip(rows.tolist(), drafted.tolist(), strict=True):
            row = self._rows[index]
            places.append(row if count == row.num_drafted else row.before[count])
        return places

    def _table_of(self, places: Sequence[Row | Reading]) -> Tensor:
        tables = [place.table for place in places if place.table is not None]
        if not tables:
            return torch.empty(0, self.trunk.network.vocab_size, device=self.trunk.network.device)
        first, start = tables[0]
        if all(table is first for table, _ in tables):
            indices = [index for _, index in tables]
            if indices == list(range(start, start + len(indices))):
                return first[start : start + len(indices)]
            return first[torch.tensor(indices, device=first.device)]
        return torch.stack([table[index] for table, index in tables])

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """[N, K] -> [N, K, D]."""
        return self.trunk.peek(self._some(rows), token_ids).clone()

    def peek_beside(self, other: TrunkSession, token_ids: Tensor, rows: Tensor | None, other_rows: Tensor) -> Tensor:
        """`peek`, in one pass with the same candidates after rows [N] of another session of this trunk.

        What the other session's rows saw is kept, so that the one that is accepted costs them no pass of their own.
        """
        these, others = self._some(rows), other._some(other_rows)
        both = self.trunk.peek([*these, *others], torch.cat([token_ids, token_ids]))
        return both[: len(these)].clone()

    def context(self, rows: Tensor | None = None) -> Tensor:
        """[N, D], of some rows or of all."""
        self.trunk.feed()
        return self._states_of(self._some(rows))

    def _states_of(self, places: Sequence[Row | Reading]) -> Tensor:
        states = [place.hidden for place in places if place.hidden is not None]
        if not states:
            return torch.empty(0, self.trunk.network.hidden_size, device=self.trunk.network.device)
        return torch.stack(states)

    def _some(self, rows: Tensor | None) -> list[Row]:
        return self._rows if rows is None else [self._rows[row] for row in rows.tolist()]


def check_length(token_ids: Sequence[int], limit: int | None) -> None:
    """Raise PromptError for a sequence that is empty or longer than the model holds."""
    if not len(token_ids):
        raise PromptError("The prompt is empty. Give at least one token.")
    if limit is not None and len(token_ids) > limit:
        raise PromptError(
            f"The sequence has {len(token_ids)} tokens; the model holds {limit}. "
            "Shorten the prompt, or use a model with a longer context."
        )
