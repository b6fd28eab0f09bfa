"""The rows of all sessions that read one context, and the passes that feed them.

`advance` only records a token. When somebody asks for numbers, the rows that lack some are fed what they are waiting
for, several rows and several tokens of each in one call. What begins alike is fed once and shared (`prefixes`); a
context that has become too small is replaced by a larger one, and what its rows hold is fed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from trimtab.core import TokenIds
from trimtab.errors import ModelError
from trimtab.models.forward.prefixes import lend, shared_with
from trimtab.models.forward.times import PassTimes
from trimtab.models.forward.trunk import check_length
from trimtab.models.llama.context import MAX_SEQUENCES, ContextFull, Fed, LlamaContext
from trimtab.models.llama.file import LlamaAdapter, LlamaFile
from trimtab.models.llama.row import Numbers, Row

_CELLS, _SEQUENCES = 4096, 32
"""Tokens and sequences of a context that nobody sized."""
_LOOKS = 8
"""Candidates that are looked at in one call, at least."""

Look: TypeAlias = tuple[int, Row, int]
"""Where the state goes, the row that a candidate continues, and the candidate."""


class LlamaTrunk:
    """The rows that run on one file under one adapter, or none.

    `nameless` are ids that no token has, which are never to be drawn.
    """

    def __init__(self, file: LlamaFile, adapter: LlamaAdapter | None = None, nameless: Tensor | None = None) -> None:
        self.file = file
        self._adapter = adapter
        self._nameless = nameless
        self._context: LlamaContext | None = None
        self._free: list[int] = []
        self._rows: list[Row] = []
        self._reads_states = False
        self.times = PassTimes()
        self.num_passes = 0
        """Calls that fed tokens of rows so far; those that looked at candidates are not counted."""
        self.num_fed = 0
        """Tokens that they fed."""

    @property
    def num_rows(self) -> int:
        """Rows of all sessions."""
        return len(self._rows)

    @property
    def num_sequences(self) -> int:
        """Sequences of the context that something is kept in."""
        return 0 if self._context is None else self._context.num_sequences - len(self._free)

    @property
    def num_columns(self) -> int:
        """Tokens that the context has room for."""
        return 0 if self._context is None else self._context.num_cells

    @property
    def num_bytes(self) -> int:
        """What the context's memory of tokens takes."""
        return self.num_columns * self.file.token_bytes

    def pass_cost(self, num_tokens: int) -> float:
        """What a pass over so many tokens of all rows takes, in seconds; a guess where none was measured."""
        return self.times.seconds(num_tokens)

    def join(self, prompts: Sequence[TokenIds]) -> list[Row]:
        """New rows; nothing is fed yet. Raises PromptError for one that is empty or too long."""
        for prompt in prompts:
            check_length(prompt, self.file.max_length)
        rows = [Row(list(map(int, prompt))) for prompt in prompts]
        self._rows.extend(rows)
        return rows

    def known(self, prompt: TokenIds) -> int:
        """How many tokens of a prompt, its last one left out, a row has been fed."""
        return min(shared_with(list(prompt), None, [row for row in self._rows if row.length]), len(prompt) - 1)

    def fork(self, row: Row) -> Row:
        """A new row that continues where this one stands."""
        twin = row.twin()
        self._rows.append(twin)
        if row.length:
            self._opened(len(self._rows))
            self._share(row, twin, row.length)
        return twin

    def leave(self, row: Row) -> None:
        """Free a row and its sequences."""
        self._drop_looks([row])
        self._release(row)
        self._rows.remove(row)

    def append(self, row: Row, token_id: int) -> None:
        """One token more; one that was looked at has been fed already."""
        looked = row.looked.pop(token_id, None)
        row.append(token_id)
        if looked is not None:
            self._release(row)
            row.sequence, row.length = looked[0], len(row.tokens)
            row.numbers = {row.length: looked[1]}
        self._drop_looks([row])

    def draft(self, row: Row, token_id: int) -> None:
        """One token more, that may be taken back."""
        self._drop_looks([row])
        row.draft(token_id)

    def settle(self, row: Row, num_kept: int) -> None:
        """Keep so many of the drafted tokens; the context forgets the others."""
        row.settle(num_kept)
        self._cut(row, len(row.tokens))

    @torch.inference_mode()
    def flush(self, *, states: bool = False) -> None:
        """Feed whatever the numbers at every place of every row need."""
        self._reads_states = self._reads_states or states
        self._feed(lambda: [row for row in self._rows if row.missing(states=states)], states=states)

    @torch.inference_mode()
    def peek(self, rows: Sequence[Row], token_ids: Tensor) -> Tensor:
        """[B, K] candidates -> [B, K, D]: each in a sequence of its own that begins as its row does."""
        for row in rows:
            check_length(range(len(row.tokens) + 1), self.file.max_length)
        self._reads_states = True
        self.flush()
        found = torch.empty(token_ids.numel(), self.file.hidden_size)
        waiting: list[Look] = []
        for row, ids in zip(rows, token_ids.tolist(), strict=True):
            for token in ids:
                waiting.append((len(waiting), row, token))
        for at, row, token in waiting:
            if token in row.looked and (state := row.looked[token][1].state) is not None:
                found[at] = state
        waiting = [look for look in waiting if look[2] not in look[1].looked]
        while waiting:
            waiting = waiting[self._look(waiting, found) :]
        return found.view(*token_ids.shape, self.file.hidden_size)

    def _look(self, waiting: Sequence[Look], found: Tensor) -> int:
        """Look at some of the candidates, the first ones; how many. None where the context had to be replaced."""
        asked = {id(row) for _, row, _ in waiting}
        self._feed(lambda: [row for row in self._rows if id(row) in asked and row.num_pending])
        context = self._opened(len(self._rows))
        least = min(len(waiting), _LOOKS)
        if len(self._free) < least:
            self._drop_looks(self._rows)
        if len(self._free) < least:
            self._opened(len(self._rows) + least)
            return 0
        some = waiting[: min(len(self._free), context.most_wanted, context.most_tokens)]
        sequences = [self._free.pop() for _ in some]
        for (_, row, _), sequence in zip(some, sequences, strict=True):
            assert row.sequence is not None
            context.copy(row.sequence, sequence, row.length)
        fed = [
            Fed(token, row.length, sequence, True) for (_, row, token), sequence in zip(some, sequences, strict=True)
        ]
        try:
            logits, states = context.decode(fed, states=True)
        except ContextFull:
            self._grow()
            return 0
        assert states is not None
        table = self._normalised(logits)
        for index, ((at, row, token), sequence) in enumerate(zip(some, sequences, strict=True)):
            found[at] = states[index]
            if token in row.looked:
                self._give_back(sequence)
            else:
                row.looked[token] = sequence, Numbers((table, index), states[index])
        return len(some)

    def _feed(self, waiting: Callable[[], list[Row]], *, states: bool = False) -> None:
        """Feed the rows that wait, in rounds, until none does."""
        while rows := waiting():
            context = self._opened(len(self._rows))
            for row in rows:
                if missing := row.missing(states=states):
                    self._cut(row, missing[0] - 1)
            loans, later = lend([row for row in rows if not row.length], [row for row in self._rows if row.length])
            for row, donor, shared in loans:
                self._take_over(row, donor, shared)
            postponed = {id(row) for row in later}
            now = [row for row in rows if id(row) not in postponed]
            try:
                self._run(context, now, states=states)
            except ContextFull:
                self._grow()

    def _take_over(self, row: Row, donor: Row, shared: int) -> None:
        """A row begins with what another has been fed, and takes its numbers where that is all of it."""
        length, numbers = min(shared, row.missing()[0] - 1), donor.numbers.get(len(row.tokens))
        if shared == len(row.tokens) and not row.num_drafted and numbers is not None:
            row.numbers[shared] = numbers
            length = shared
        self._share(donor, row, length)

    def _run(self, context: LlamaContext, rows: Sequence[Row], *, states: bool) -> None:
        """Feed rows to their ends, in as few calls as there have to be.

        Where states are read, tokens whose numbers nobody wants go first: the library gives states of all or of none.
        """
        fed: list[tuple[Row, Fed]] = []
        for row in rows:
            if row.sequence is None:
                row.sequence = self._take()
            wanted = set(row.missing(states=states))
            fed += [
                (row, Fed(token, at, row.sequence, at + 1 in wanted))
                for at, token in enumerate(row.tokens[row.length :], row.length)
            ]
        if not self._reads_states:
            self._call(context, fed, states=False)
            return
        self._call(context, [(row, token) for row, token in fed if not token.wanted], states=False)
        self._call(context, [(row, token) for row, token in fed if token.wanted], states=True)

    def _call(self, context: LlamaContext, fed: Sequence[tuple[Row, Fed]], *, states: bool) -> None:
        """Feed tokens in calls that the context takes, and note what they gave."""
        start = 0
        while start < len(fed):
            end, wanted = start, 0
            while end < len(fed) and end - start < context.most_tokens:
                wanted += fed[end][1].wanted
                if wanted > context.most_wanted:
                    break
                end += 1
            some = fed[start:end]
            started = time.perf_counter()
            logits, after = context.decode([token for _, token in some], states=states)
            table = self._normalised(logits)
            self.times.note(len(some), time.perf_counter() - started)
            self.num_passes += 1
            self.num_fed += len(some)
            index = 0
            for row, token in some:
                row.length = token.position + 1
                if token.wanted:
                    row.numbers[row.length] = Numbers((table, index), None if after is None else after[index])
                    index += 1
            start = end

    def _opened(self, num_sequences: int) -> LlamaContext:
        """The context, with so many sequences at least."""
        if num_sequences > MAX_SEQUENCES:
            raise ModelError(
                f"{num_sequences} sequences are wanted; llama.cpp holds {MAX_SEQUENCES} in a context. Run fewer "
                "requests at a time."
            )
        if self._context is None:
            waiting = sum(len(row.tokens) for row in self._rows)
            cells = self.file.options.n_ctx or max(_CELLS, waiting * 3 // 2)
            self._renew(cells, max(_SEQUENCES, _power(num_sequences)))
        elif self._context.num_sequences < num_sequences:
            self._renew(self._context.num_cells, _power(num_sequences))
        assert self._context is not None
        return self._context

    def _grow(self) -> None:
        """A context with half as much room again, which a server plans for.

        Raises ModelError where its size was asked for.
        """
        asked = self.file.options.n_ctx
        if asked is not None:
            raise ModelError(
                f"The rows that run need room for more tokens than n_ctx={asked} gives. Give a larger n_ctx or none, "
                "shorter prompts, or fewer rows at a time."
            )
        assert self._context is not None
        self._renew(self._context.num_cells * 3 // 2, self._context.num_sequences)

    def _renew(self, num_cells: int, num_sequences: int) -> None:
        """A new, empty context of another size; rows keep their numbers, and are fed again when they go on."""
        self._context = None  # freed before the new one takes memory
        for row in self._rows:
            row.sequence, row.length = None, 0
            row.looked.clear()
        self._free = []
        self._context = LlamaContext(self.file, self._adapter, num_cells, num_sequences)
        self._free = list(range(self._context.num_sequences))[::-1]

    def _share(self, donor: Row, row: Row, length: int) -> None:
        """Let a row that has nothing begin with what another has been fed."""
        if donor.sequence is None or donor.length < length or self._context is None:
            return
        row.sequence = self._take() if row.sequence is None else row.sequence
        self._context.copy(donor.sequence, row.sequence, length)
        row.length = length

    def _take(self) -> int:
        """A sequence that holds nothing; what was looked at gives way to rows."""
        if not self._free:
            self._drop_looks(self._rows)
        return self._free.pop()

    def _cut(self, row: Row, length: int) -> None:
        """Let the context forget what a row has after its first `length` tokens."""
        if row.length > length and self._context is not None and row.sequence is not None:
            self._context.cut(row.sequence, length)
            row.length = length

    def _drop_looks(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for sequence, _ in row.looked.values():
                self._give_back(sequence)
            row.looked.clear()

    def _release(self, row: Row) -> None:
        if row.sequence is not None:
            self._give_back(row.sequence)
        row.sequence, row.length = None, 0

    def _give_back(self, sequence: int) -> None:
        assert self._context is not None
        self._context.cut(sequence, 0)
        self._free.append(sequence)

    def _normalised(self, logits: Tensor) -> Tensor:
        """[N, V] numbers in the library's memory -> log-probabilities in our own."""
        if self._nameless is not None and len(logits):
            logits = logits.clone()
            logits[:, self._nameless] = -torch.inf
        return torch.log_softmax(logits, dim=-1)


def _power(num: int) -> int:
    """The least power of two that is no smaller."""
    return 1 << max(0, num - 1).bit_length()
