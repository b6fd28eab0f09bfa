"""A key-value cache whose rows have their own length, and the batch geometry that goes with it.

A row owns a slot; its keys and values fill columns 0..length-1 of that slot, wherever its neighbours end. A pass over
some rows writes each row's new columns at that row's own end, and a mask built from lengths (never from token ids)
shows each query what it may see. So rows join, leave and fork without re-padding or prefilling the others.

`RowCache` is a `Cache` by transformers' own contract: a list of layers that store what attention gives them and say how
long they are. So whatever a stock model asks of its cache has an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from trimtab.errors import CompatibilityError

_COLUMN_STEP = 64


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a kind of attention layer sees: all of a row where neither is given."""

    window: int | None = None
    """So many tokens, the query itself included: a sliding window."""
    chunk: int | None = None
    """The tokens since the last multiple of this position: chunked attention."""

    def covers(self, queries: Tensor, keys: Tensor) -> Tensor | bool:
        """Whether positions of queries reach back to positions of keys, which broadcast against each other."""
        if self.window is not None:
            return keys > queries - self.window
        return True if self.chunk is None else keys // self.chunk == queries // self.chunk


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one forward pass reads and writes: B rows, Q query columns each, T columns in view."""

    slots: tuple[int, ...]
    """[B] distinct; ascending, so that a run of neighbours is read as a view."""
    columns: Tensor
    """[B, Q] int64: the column each query's key and value go to."""
    positions: Tensor
    """[B, Q] int64: the position of each query in its sequence."""
    seen: Tensor
    """[B, Q] int64: how many columns of the row's own past a query sees, besides its own column."""
    horizon: int
    """T: one past the last column that anybody reads or writes."""
    uniform: bool
    """Whether all rows write the same columns."""

    @property
    def width(self) -> int:
        """Q: how many columns each row brings."""
        return self.columns.shape[1]

    @staticmethod
    def extend(slots: Sequence[int], lengths: Sequence[int], width: int, device: torch.device) -> Layout:
        """Each row appends `width` tokens: query q of row b sees everything before it."""
        start = torch.tensor(lengths, device=device)[:, None]
        columns = start + torch.arange(width, device=device)
        uniform = min(lengths) == max(lengths)
        return Layout(tuple(slots), columns, columns, columns, max(lengths) + width, uniform)

    @staticmethod
    def branch(
        slots: Sequence[int], lengths: Sequence[int], taken: Sequence[int], width: int, device: torch.device
    ) -> Layout:
        """`width` alternatives for the next token of each row: each sees the row's past and itself.

        `taken` counts the columns that earlier alternatives of the same row already fill.
        """
        past = torch.tensor(lengths, device=device)[:, None].expand(-1, width)
        columns = past + torch.tensor(taken, device=device)[:, None] + torch.arange(width, device=device)
        ends = [length + used for length, used in zip(lengths, taken, strict=True)]
        return Layout(tuple(slots), columns, past, past, max(ends) + width, min(ends) == max(ends))

    def visible(self, reach: Reach | None = None) -> Tensor:
        """[B, 1, Q, T] bool, True = attend: the part of its row's past that a layer of this reach shows a query."""
        column = torch.arange(self.horizon, device=self.columns.device)
        past = column < self.seen[..., None]
        if reach is not None:
            past = past & reach.covers(self.positions[..., None], column)
        return (past | (column == self.columns[..., None]))[:, None]


@dataclass(slots=True)
class Pool:
    """The size of every layer's memory, and the geometry of the forward pass that runs."""

    num_slots: int = 0
    num_columns: int = 0
    layout: Layout | None = None
    rows: Tensor | None = None
    """[B] the slots of the pass as an index; None where they are neighbours, which are read as a view."""


class RowLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed here
    """One layer's keys and values [S, H, C, d]: S slots, C columns, zero where nobody has written.

    In memory the columns come before the heads, so that a token's column is written in one piece.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False  # a layer with a window keeps every column; the mask hides those before the window

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool
        self._updated: Layout | None = None
        self._buffers: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for keys and values like these [B, H, Q, d], which may differ in d."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._hold(self._zeros(key_states), self._zeros(value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store the new keys and values [B, H, Q, d] of this pass's rows; return all that they may see [B, H, T, d].

        What else a model hands over is for caches of another make, which quantize or sample what they keep.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._updated = self._pool.layout
        keys, values = self._buffers
        return self._store(keys, key_states), self._store(values, value_states)

    def get_seq_length(self) -> int:
        """How many columns the longest row of this pass fills: before `update`, without those of the pass."""
        layout = self._pool.layout
        if layout is None:
            return 0
        return layout.horizon if self._updated is layout else layout.horizon - layout.width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns `update` returns in this pass, and the first of them."""
        layout = self._pool.layout
        return (query_length if layout is None else layout.horizon), 0

    def get_max_length(self) -> int:
        """-1: a row grows without an end."""
        return -1

    def reorder_cache(self, *_: object) -> None:
        """Refused, and so is all else by which `generate` moves rows: they belong to sessions."""
        raise CompatibilityError(
            "The rows of this cache belong to sessions, and cannot be moved by `generate`. "
            "Accepted: a session's `keep`, or a cache of transformers' own."
        )

    crop = batch_repeat_interleave = batch_select_indices = reorder_cache

    def resize(self) -> None:
        """Follow the pool's size."""
        if self.is_initialized:
            self._hold(self._zeros(self.keys, self.keys), self._zeros(self.values, self.values))

    def buffers(self) -> tuple[Tensor, ...]:
        """Keys and values as they lie in memory [S, C, H, d]; none before the first pass."""
        return self._buffers

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self._buffers = (keys, values)
        self.keys, self.values = keys.transpose(1, 2), values.transpose(1, 2)

    def _zeros(self, like: Tensor, content: Tensor | None = None) -> Tensor:
        _, heads, _, width = like.shape
        buffer = like.new_zeros(self._pool.num_slots, self._pool.num_columns, heads, width)
        if content is not None:
            buffer[: content.shape[0], : content.shape[2]] = content.transpose(1, 2)
        return buffer

    def _store(self, buffer: Tensor, new: Tensor) -> Tensor:
        layout, slots = self._pool.layout, self._pool.rows
        assert layout is not None, "update outside a forward pass"
        new = new.transpose(1, 2)
        if slots is not None:
            slots = slots.to(new.device)  # a model may be spread over devices
            buffer[slots[:, None], layout.columns.to(new.device)] = new
            return buffer[slots, : layout.horizon].transpose(1, 2)
        rows = buffer[layout.slots[0] : layout.slots[-1] + 1, : layout.horizon]
        if layout.uniform:
            rows[:, layout.horizon - new.shape[1] :].copy_(new)
        else:
            rows[torch.arange(len(new), device=new.device)[:, None], layout.columns.to(new.device)] = new
        return rows.transpose(1, 2)


class RowCache(Cache):  # type: ignore[misc]
    """Keys and values of every layer for a pool of slots. Grows by doubling; memory is zeroed once, so that columns
    nobody has written are finite."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._pool = Pool()

    def begin(self, layout: Layout) -> None:
        """Make room for a forward pass and remember its geometry for `update`."""
        pool = self._pool
        slots = max(layout.slots) + 1
        if slots > pool.num_slots:
            self._resize(max(slots, min(2 * pool.num_slots, pool.num_slots + 16)), pool.num_columns)
        if layout.horizon > pool.num_columns:
            columns = max(layout.horizon, pool.num_columns + pool.num_columns // 2)
            self._resize(pool.num_slots, -(-columns // _COLUMN_STEP) * _COLUMN_STEP)
        first = layout.slots[0]
        together = layout.slots == tuple(range(first, first + len(layout.slots)))
        pool.layout = layout
        pool.rows = None if together else torch.tensor(layout.slots, device=layout.columns.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer: store new keys and values [B, H, Q, d], return all [B, H, T, d].

        Layers appear as they are used. Nothing is offloaded, so what `Cache` does besides is left out.
        """
        while len(self.layers) <= layer_idx:
            self.layers.append(RowLayer(self._pool))
        stored: tuple[Tensor, Tensor] = self.layers[layer_idx].update(key_states, value_states)
        return stored

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` columns of slots into others: for a fork, a move, or rows that begin alike."""
        if length == 0:  # a row that was never fed may have no slot in the buffers yet
            return
        if max(targets) >= self._pool.num_slots:
            self._resize(max(targets) + 1, self._pool.num_columns)
        for buffer in self._buffers():
            buffer[list(targets), :length] = buffer[list(sources), :length]

    def shift(self, slots: Sequence[int], sources: Sequence[int], targets: Sequence[int]) -> None:
        """In each slot, copy one column onto another: a peeked candidate that was accepted."""
        if not slots:
            return
        for buffer in self._buffers():
            rows, old, new = (torch.tensor(index, device=buffer.device) for index in (slots, sources, targets))
            buffer[rows, new] = buffer[rows, old]

    def _buffers(self) -> list[Tensor]:
        return [buffer for layer in self.layers for buffer in layer.buffers()]

    def _resize(self, num_slots: int, num_columns: int) -> None:
        self._pool.num_slots, self._pool.num_columns = num_slots, num_columns
        for layer in self.layers:
            layer.resize()
