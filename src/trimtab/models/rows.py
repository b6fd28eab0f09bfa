"""A key-value cache whose rows have their own length, and the batch geometry that goes with it.

A row owns a slot; its keys and values fill columns 0..length-1 of that slot, wherever its neighbours end. A pass over
some rows writes each row's new columns at that row's own end, and a mask built from lengths (never from token ids)
shows each query what it may see. So rows join, leave and fork without re-padding or prefilling the others.

Stock transformers models accept `RowCache` as `past_key_values`: they only call `update`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_COLUMN_STEP = 64


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

    def visible(self, window: int | None = None) -> Tensor:
        """[B, 1, Q, T] bool, True = attend. `window` is a sliding window's length, the query itself included."""
        column = torch.arange(self.horizon, device=self.columns.device)
        past = column < self.seen[..., None]
        if window is not None:
            past = past & (column > self.positions[..., None] - window)
        return (past | (column == self.columns[..., None]))[:, None]


class RowCache:
    """Keys and values of every layer for a pool of slots. Grows by doubling; memory is zeroed once, so that columns
    nobody has written are finite."""

    def __init__(self) -> None:
        self._keys: list[Tensor | None] = []
        self._values: list[Tensor | None] = []
        self._num_slots = 0
        self._num_columns = 0
        self._layout: Layout | None = None
        self._rows: Tensor | None = None

    def begin(self, layout: Layout) -> None:
        """Make room for a forward pass and remember its geometry for `update`."""
        slots = max(layout.slots) + 1
        if slots > self._num_slots:
            self._resize(max(slots, min(2 * self._num_slots, self._num_slots + 16)), self._num_columns)
        if layout.horizon > self._num_columns:
            columns = max(layout.horizon, self._num_columns + self._num_columns // 2)
            self._resize(self._num_slots, -(-columns // _COLUMN_STEP) * _COLUMN_STEP)
        self._layout = layout
        first = layout.slots[0]
        together = layout.slots == tuple(range(first, first + len(layout.slots)))
        self._rows = None if together else torch.tensor(layout.slots, device=layout.columns.device)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        """Called by each attention layer: store new keys and values [B, H, Q, d], return all [B, H, T, d]."""
        while len(self._keys) <= layer_idx:
            self._keys.append(None)
            self._values.append(None)
        return self._store(self._keys, layer_idx, keys), self._store(self._values, layer_idx, values)

    def _store(self, buffers: list[Tensor | None], layer: int, new: Tensor) -> Tensor:
        layout = self._layout
        assert layout is not None, "update outside a forward pass"
        buffer = buffers[layer]
        if buffer is None:
            _, heads, _, width = new.shape
            buffer = new.new_zeros(self._num_slots, self._num_columns, heads, width)
            buffers[layer] = buffer
        new = new.transpose(1, 2)
        columns = layout.columns.to(new.device)  # a model may be spread over devices
        if self._rows is not None:
            slots = self._rows.to(new.device)
            buffer[slots[:, None], columns] = new
            return buffer[slots, : layout.horizon].transpose(1, 2)
        rows = buffer[layout.slots[0] : layout.slots[-1] + 1, : layout.horizon]
        if layout.uniform:
            rows[:, layout.horizon - new.shape[1] :].copy_(new)
        else:
            rows[torch.arange(len(new), device=new.device)[:, None], columns] = new
        return rows.transpose(1, 2)

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` columns of slots into others: for a fork, a move, or rows that begin alike."""
        if length == 0:  # a row that was never fed may have no slot in the buffers yet
            return
        if max(targets) >= self._num_slots:
            self._resize(max(targets) + 1, self._num_columns)
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
        return [buffer for buffer in (*self._keys, *self._values) if buffer is not None]

    def _resize(self, num_slots: int, num_columns: int) -> None:
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                if buffer is not None:
                    larger = buffer.new_zeros(num_slots, num_columns, *buffer.shape[2:])
                    larger[: buffer.shape[0], : buffer.shape[1]] = buffer
                    buffers[layer] = larger
        self._num_slots, self._num_columns = num_slots, num_columns
