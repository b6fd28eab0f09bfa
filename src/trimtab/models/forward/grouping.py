"""Which rows go together: through one pass, under one adapter, on one shelf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trimtab.models.forward.shelves import Row

_PREFILL_TOKENS = 4096
"""Padded tokens of one prefill pass: bounds its activations."""
_FEW = 32
"""Padded tokens of a pass that cost less than a pass more does."""


class RowAdapter(Protocol):
    """Low-rank updates that apply to some rows of a batch."""


def by_adapter(batch: Sequence[Row]) -> list[tuple[RowAdapter, list[int]]]:
    """Each adapter of some rows, and which of them run with it."""
    adapters: dict[int, tuple[RowAdapter, list[int]]] = {}
    for index, row in enumerate(batch):
        if row.adapter is not None:
            adapters.setdefault(id(row.adapter), (row.adapter, []))[1].append(index)
    return list(adapters.values())


def by_shelf(rows: Sequence[Row]) -> list[list[int]]:
    """Which rows lie on each shelf, by slot."""
    found: dict[int, list[int]] = {}
    for at in sorted(range(len(rows)), key=lambda at: rows[at].place or (0, 0)):
        found.setdefault(rows[at].shelf, []).append(at)
    return list(found.values())


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that are fed together: alike in how many tokens they wait for, within a budget of padded tokens."""
    found: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.num_pending):
        shortest = found[-1][0].num_pending if found else 0
        width = row.num_pending
        padded = (len(found[-1]) + 1) * width if found else 0
        alike = width == shortest or (shortest > 1 and width <= 2 * shortest) or padded <= _FEW
        if found and alike and padded <= max(_PREFILL_TOKENS, width):
            found[-1].append(row)
        else:
            found.append([row])
    return found
