"""A key-value cache whose rows have their own length, and the batch geometry that goes with it.

A row owns a slot; its keys and values fill columns 0..length-1 of that slot, wherever its neighbours end. A pass over
some rows writes each row's new columns at that row's own end, and a mask built from lengths (never from token ids)
shows each query what it may see. So rows join, leave and fork without re-padding or prefilling the others.

Slots lie in shelves, rectangles of slots by columns that grow and shrink by themselves: rows of very different lengths
belong on different ones (`shelves.Shelves`), and a pass runs over rows of one.

`RowCache` is a `Cache` by transformers' own contract: a list of layers that store what attention gives them and say how
long they are. So whatever a stock model asks of its cache has an answer.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from trimtab.errors import CompatibilityError

_COLUMN_STEP = 64
_MUCH = 16 << 20
"""Bytes from which on freed memory is handed back to the system at once."""

Place = tuple[int, int]
"""A shelf, and a slot of it."""


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
    shelf: int = 0
    """The shelf that the slots are of."""

    @property
    def width(self) -> int:
        """Q: how many columns each row brings."""
        return self.columns.shape[1]

    @staticmethod
    def extend(
        slots: Sequence[int], lengths: Sequence[int], width: int, device: torch.device, shelf: int = 0
    ) -> Layout:
        """Each row appends `width` tokens: query q of row b sees everything before it."""
        start = torch.tensor(lengths, device=device)[:, None]
        columns = start + torch.arange(width, device=device)
        uniform = min(lengths) == max(lengths)
        return Layout(tuple(slots), columns, columns, columns, max(lengths) + width, uniform, shelf)

    @staticmethod
    def branch(
        slots: Sequence[int],
        lengths: Sequence[int],
        taken: Sequence[int],
        width: int,
        device: torch.device,
        shelf: int = 0,
    ) -> Layout:
        """`width` alternatives for the next token of each row: each sees the row's past and itself.

        `taken` counts the columns that earlier alternatives of the same row already fill.
        """
        past = torch.tensor(lengths, device=device)[:, None].expand(-1, width)
        columns = past + torch.tensor(taken, device=device)[:, None] + torch.arange(width, device=device)
        ends = [length + used for length, used in zip(lengths, taken, strict=True)]
        return Layout(tuple(slots), columns, past, past, max(ends) + width, min(ends) == max(ends), shelf)

    def visible(self, reach: Reach | None = None) -> Tensor:
        """[B, 1, Q, T] bool, True = attend: the part of its row's past that a layer of this reach shows a query."""
        column = torch.arange(self.horizon, device=self.columns.device)
        past = column < self.seen[..., None]
        if reach is not None:
            past = past & reach.covers(self.positions[..., None], column)
        return (past | (column == self.columns[..., None]))[:, None]


@dataclass(slots=True)
class Pool:
    """The size of every shelf, the same in all layers, and the geometry of the forward pass that runs."""

    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Shelf -> (slots, columns)."""
    layout: Layout | None = None
    rows: Tensor | None = None
    """[B] the slots of the pass as an index; None where they are neighbours, which are read as a view."""


class RowLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed here
    """One layer's keys and values, [S, H, C, d] a shelf: S slots, C columns, zero where nobody has written.

    `keys` and `values` are those of the last pass's shelf. In memory the columns come before the heads, so that a
    token's column is written in one piece.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False  # a layer with a window keeps every column; the mask hides those before the window

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool
        self._updated: Layout | None = None
        self._shelves: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values as they lie in memory, [S, C, H, d]
        self._models: tuple[Tensor, Tensor] | None = None  # keys and values [0, 0, H, d] of no row

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn the shape of keys and values [B, H, Q, d], which may differ in d."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._models = key_states.transpose(1, 2)[:0, :0].clone(), value_states.transpose(1, 2)[:0, :0].clone()
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store the new keys and values [B, H, Q, d] of this pass's rows; return all that they may see [B, H, T, d].

        What else a model hands over is for caches of another make, which quantize or sample what they keep.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._updated = layout = self._pool.layout
        assert layout is not None, "update outside a forward pass"
        keys, values = self.shelf(layout.shelf)
        self.keys, self.values = keys.transpose(1, 2), values.transpose(1, 2)
        return self._store(keys, key_states, layout), self._store(values, value_states, layout)

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

    def reset(self) -> None:
        """Zero all shelves."""
        for buffer in (buffer for shelf in self._shelves.values() for buffer in shelf):
            buffer.zero_()

    def shelf(self, shelf: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a shelf as they lie in memory [S, C, H, d]; the layer must know their shape."""
        held = self._shelves.get(shelf)
        if held is None or held[0].shape[:2] != self._pool.sizes[shelf]:  # memory may have run out amid the layers
            self.resize(shelf)
        return self._shelves[shelf]

    def resize(self, shelf: int) -> None:
        """Follow the size of a shelf; what fits stays."""
        assert self._models is not None, "resize before the first pass"
        keys, values = (model.new_zeros(*self._pool.sizes[shelf], *model.shape[2:]) for model in self._models)
        for new, old in zip((keys, values), self._shelves.get(shelf, ()), strict=False):
            slots, columns = (min(pair) for pair in zip(new.shape[:2], old.shape[:2], strict=True))
            new[:slots, :columns] = old[:slots, :columns]
        self.drop(shelf)
        self._shelves[shelf] = keys, values

    def drop(self, shelf: int) -> None:
        """Give a shelf's memory back."""
        self._shelves.pop(shelf, None)
        if self._updated is not None and self._updated.shelf == shelf and self._models is not None:
            self.keys, self.values = (model.transpose(1, 2) for model in self._models)

    @property
    def shelves(self) -> Collection[int]:
        """Those that hold memory here."""
        return self._shelves.keys()

    @property
    def num_bytes(self) -> int:
        """What all shelves take."""
        return sum(buffer.nbytes for shelf in self._shelves.values() for buffer in shelf)

    @property
    def token_bytes(self) -> int:
        """What one column of one slot takes; 0 before the first pass."""
        return sum(model.shape[2] * model.shape[3] * model.element_size() for model in self._models or ())

    def _store(self, buffer: Tensor, new: Tensor, layout: Layout) -> Tensor:
        slots = self._pool.rows
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


def give_back() -> None:
    """Let the C library return what was freed: glibc keeps blocks of up to 32 MiB for the process to use again."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))


class RowCache(Cache):  # type: ignore[misc]
    """Keys and values of every layer for the slots of any number of shelves.

    A shelf grows as passes need it and shrinks or goes when it is told to; its memory is zeroed once, so that columns
    nobody has written are finite.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._pool = Pool()
        self.roomy = True
        """Whether a shelf that grows takes more than it needs at once."""

    @property
    def sizes(self) -> Mapping[int, tuple[int, int]]:
        """Shelf -> (slots, columns)."""
        return self._pool.sizes

    @property
    def num_columns(self) -> int:
        """Slots times columns of all shelves."""
        return sum(slots * columns for slots, columns in self._pool.sizes.values())

    @property
    def num_bytes(self) -> int:
        """What all layers hold."""
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def token_bytes(self) -> int:
        """What one column of one row takes in all layers; 0 before the first pass."""
        return sum(layer.token_bytes for layer in self.layers)

    def begin(self, layout: Layout) -> None:
        """Make room for a forward pass and remember its geometry for `update`."""
        pool = self._pool
        self.reserve(layout.shelf, max(layout.slots) + 1, layout.horizon)
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

    def copy(self, moves: Sequence[tuple[Place, Place, int]]) -> None:
        """For each (from, to, length): copy the first `length` columns of a slot, for a fork, a move or a loan.

        No target may be another's source. More columns may be copied than asked for, which fill up what nobody has
        written.
        """
        between: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for (shelf, slot), (other, target), length in moves:
            if length:  # a row that was never fed may have no slot in the buffers yet
                between.setdefault((shelf, other), []).append((slot, target, length))
        for (shelf, other), pairs in between.items():
            sources, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            length = max(length for *_, length in pairs)
            self.reserve(other, max(targets) + 1, length)
            for layer in self._known_layers():
                for old, new in zip(layer.shelf(shelf), layer.shelf(other), strict=True):
                    new[targets, :length] = old[sources, :length]

    def shift(self, places: Sequence[Place], sources: Sequence[int], targets: Sequence[int]) -> None:
        """In each slot, copy one column onto another: a peeked candidate that was accepted."""
        for shelf in {shelf for shelf, _ in places}:
            here = [index for index, place in enumerate(places) if place[0] == shelf]
            slots, old, new = ([which[index] for index in here] for which in ([p[1] for p in places], sources, targets))
            for buffer in (buffer for layer in self._known_layers() for buffer in layer.shelf(shelf)):
                rows, before, after = (torch.tensor(index, device=buffer.device) for index in (slots, old, new))
                buffer[rows, after] = buffer[rows, before]

    def reserve(self, shelf: int, num_slots: int, num_columns: int) -> None:
        """Let a shelf have this size at least, and some room where it has to grow."""
        slots, columns = self._pool.sizes.get(shelf, (0, 0))
        if num_slots > slots or num_columns > columns:
            some, more = (slots // 4, columns // 8) if self.roomy else (slots // 8, 0)
            num_slots = max(num_slots, slots + some) if num_slots > slots else slots
            num_columns = max(num_columns, columns + more) if num_columns > columns else columns
            self.resize(shelf, num_slots, -(-num_columns // _COLUMN_STEP) * _COLUMN_STEP)

    def resize(self, shelf: int, num_slots: int, num_columns: int) -> None:
        """Give a shelf exactly this size; what fits stays."""
        self._pool.sizes[shelf] = num_slots, num_columns
        for layer in self._known_layers():
            if shelf in layer.shelves:
                layer.resize(shelf)

    def drop(self, shelf: int) -> None:
        """Give a shelf's memory back."""
        slots, columns = self._pool.sizes.pop(shelf, (0, 0))
        for layer in self.layers:
            layer.drop(shelf)
        if slots * columns * self.token_bytes >= _MUCH:
            give_back()

    def _known_layers(self) -> list[RowLayer]:
        return [layer for layer in self.layers if layer.is_initialized]
