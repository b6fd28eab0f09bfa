"""Which rows of a cache lie together: rows of like length share a rectangle, so that each costs what it holds.

A forward pass runs over the rows of one shelf, padded to the longest, and memory is shelf by shelf a rectangle. One
shelf for all rows wastes what the short ones do not fill, in memory and in attention; a shelf more is a pass over the
weights more. `cut` weighs the one against the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trimtab.models.forward.row_cache import Place, RowCache

PATIENCE = 8
"""Passes for which a shelf may be larger than it needs to be: what is needed again and again stays."""
_ROOM = 64
"""Columns past its rows' ends that a shelf has at least when it is cut down."""


class Reading:
    """What a token that was fed led to: the state after it, and log-probabilities once somebody asked for them."""

    __slots__ = ("hidden", "table")

    def __init__(self, hidden: Tensor, table: tuple[Tensor, int] | None = None) -> None:
        self.hidden = hidden  # [D]
        self.table = table  # ([N, V] log-probabilities, which of them)


class Row:
    """One growing sequence: how much of it is in the cache and where, and what its last token led to."""

    __slots__ = (
        "adapter",
        "before",
        "hidden",
        "length",
        "moved_from",
        "num_drafted",
        "peeked",
        "place",
        "table",
        "tables",
        "tokens",
    )

    def __init__(self, prompt: list[int], adapter: object | None, *, tables: bool = True) -> None:
        self.place: Place | None = None  # none until there is something to feed it for
        self.adapter = adapter
        self.tables = tables  # whether log-probabilities will be asked for
        self.tokens = prompt
        self.length = 0  # of them, in the cache
        self.hidden: Tensor | None = None  # [D] after the last token fed
        self.table: tuple[Tensor, int] | None = None  # ([N, V] log-probabilities, which of them)
        self.peeked: dict[int, tuple[int, Tensor]] = {}  # candidate -> (its column, its state [D])
        self.moved_from: int | None = None  # the accepted candidate's column, to be moved to the row's end
        self.num_drafted = 0  # of the last tokens, how many `take_back` may still remove
        self.before: list[Reading] = []  # what was read before each drafted token, as far as they are fed

    @property
    def shelf(self) -> int:
        """Which shelf it lies on."""
        assert self.place is not None, "the row has no place yet"
        return self.place[0]

    @property
    def slot(self) -> int:
        """Where on its shelf it lies."""
        assert self.place is not None, "the row has no place yet"
        return self.place[1]

    @property
    def num_pending(self) -> int:
        """How many tokens wait to be fed."""
        return len(self.tokens) - self.length

    @property
    def num_peeked(self) -> int:
        """How many columns past the row's end hold candidates that may still be accepted."""
        return max((column + 1 - self.length for column, _ in self.peeked.values()), default=0)

    def append(self, token_id: int) -> None:
        known = None if self.num_pending else self.peeked.get(token_id)
        self.tokens.append(token_id)
        self.table = None
        self.peeked = {}
        if known is None or self.moved_from is not None:
            self.hidden = None
            return
        column, self.hidden = known
        self.moved_from = column if column != self.length else None
        self.length += 1

    def draft(self, token_id: int) -> None:
        """Append a token that may be taken back."""
        if not self.num_pending and self.hidden is not None:
            self.before.append(Reading(self.hidden, self.table))
        self.tokens.append(token_id)
        self.num_drafted += 1
        self.hidden, self.table, self.peeked = None, None, {}

    def take_back(self, num: int) -> None:
        """Remove the last `num` drafted tokens; the others are the row's for good."""
        if num:
            del self.tokens[-num:]
            fed = self.num_drafted - num < len(self.before)
            known = self.before[self.num_drafted - num] if fed else None
            self.length = min(self.length, len(self.tokens))
            self.hidden, self.table = (None, None) if known is None else (known.hidden, known.table)
            self.peeked = {}
        self.num_drafted, self.before = 0, []

    def note(self, states: Tensor, num: int) -> None:
        """The states [Q, D] after its next tokens, of which `num` are the row's and the rest padding."""
        last = len(self.tokens)
        for index in range(num):
            length = self.length + index + 1
            if last - self.num_drafted <= length < last:
                self.before.append(Reading(states[index]))
        self.hidden = states[num - 1]
        self.length += num
        self.table, self.peeked = None, {}


class Shelves:
    """The rows of a cache, each in a place of its own; the rows of a shelf fill its first slots."""

    def __init__(self, cache: RowCache) -> None:
        self._cache = cache
        self._shelves: dict[int, list[Row]] = {}
        self._spare: dict[int, int] = {}  # shelf -> columns past a row's end that passes over it have used
        self._patience: dict[int, int] = {}  # shelf -> passes for which it has been too large
        self._kept: int | None = None  # what the rows cost more than alone when a better cut was last looked for
        self._next = 0

    def arrange(self, rows: Sequence[Row], worth: int) -> dict[int, list[Row]]:
        """Shelf -> its rows, by slot: every row has a place, among rows of like length. Call it before a pass.

        `rows` are all there are. `worth` is how many padded columns cost what one pass more does.
        """
        self.settle(rows)
        for row in rows:
            if row.place is None:
                self._put(row, self._cheapest(len(row.tokens), worth))
        excess = self._cost(worth) - sum(len(row.tokens) for row in rows) - worth
        if excess > worth // 2 and excess != self._kept:
            self._rearrange(rows, worth)
            self._kept = self._cost(worth) - sum(len(row.tokens) for row in rows) - worth
        self._cut_down(most=bound(sum(len(row.tokens) for row in rows), len(rows)))
        return self._shelves

    def use(self, shelf: int, num_columns: int) -> None:
        """A pass over a shelf takes so many columns past its rows' ends."""
        self._spare[shelf] = max(self._spare.get(shelf, 0), num_columns)

    def fork(self, row: Row, twin: Row) -> None:
        """Give a row that continues where another stands a place beside it."""
        if row.place is None:
            return
        shelf = row.place[0]
        place = shelf, len(self._shelves[shelf])
        self._cache.copy([(row.place, place, row.length)])
        twin.place = place
        self._shelves[shelf].append(twin)

    def remove(self, row: Row) -> None:
        """Free a row's place; the last of its shelf moves there, so that those in use stay together."""
        if row.place is None:
            return
        shelf, slot = row.place
        here = self._shelves[shelf]
        last = here[-1]
        if last is not row:
            assert last.place is not None
            self.settle([last])
            last.peeked = {}
            self._cache.copy([(last.place, row.place, last.length)])
            last.place, here[slot] = row.place, last
        here.pop()
        row.place = None
        if not here:
            self._drop(shelf)

    def settle(self, rows: Sequence[Row]) -> None:
        """Move accepted candidates' columns to the ends of their rows."""
        moved = [row for row in rows if row.moved_from is not None]
        if moved:
            self._cache.shift(
                [row.place for row in moved if row.place is not None],
                [row.moved_from for row in moved if row.moved_from is not None],
                [row.length - 1 for row in moved],
            )
        for row in moved:
            row.moved_from = None

    def _put(self, row: Row, shelf: int) -> None:
        """Give a row a place on a shelf, and take what it holds along."""
        place = shelf, len(self._shelves.setdefault(shelf, []))
        if row.place is not None:
            self._cache.copy([(row.place, place, row.length)])
            row.peeked = {}
            self.remove(row)
        row.place = place
        self._shelves[shelf].append(row)

    def _cheapest(self, length: int, worth: int) -> int:
        """The shelf on which one row more of this length costs least; a new one where that is cheaper."""
        best, least = None, length + worth
        for shelf, here in self._shelves.items():
            longest = _longest(here)
            more = (len(here) + 1) * max(longest, length) - len(here) * longest
            if more <= least:
                best, least = shelf, more
        return self._new() if best is None else best

    def _cost(self, worth: int) -> int:
        """Columns that passes over all shelves read, a pass counted as `worth` of them."""
        return sum(len(here) * _longest(here) + worth for here in self._shelves.values())

    def _rearrange(self, rows: Sequence[Row], worth: int) -> None:
        """Cut the rows anew, where that saves half a pass; each group keeps the shelf that holds most of it."""
        ordered = sorted(rows, key=lambda row: len(row.tokens))
        groups = [ordered[start:end] for start, end in cut([len(row.tokens) for row in ordered], worth)]
        cost = sum(len(group) * len(group[-1].tokens) + worth for group in groups)
        if self._cost(worth) - cost <= worth // 2:
            return
        free = set(self._shelves)
        for group in sorted(groups, key=len, reverse=True):
            held: dict[int, int] = dict.fromkeys(free, 0)
            for row in group:
                if row.place is not None and row.place[0] in free:
                    held[row.place[0]] += row.length
            shelf = max(held, key=lambda one: held[one], default=None)
            if shelf is None or not held[shelf]:
                shelf = self._new()
            free.discard(shelf)
            coming = [row for row in group if row.place is None or row.place[0] != shelf]
            self._cache.reserve(shelf, len(self._shelves[shelf]) + len(coming), len(group[-1].tokens))
            for row in coming:
                self._put(row, shelf)

    def _cut_down(self, most: int) -> None:
        """Shrink what has been larger than it needs to be for some passes; at once, where all is more than `most`."""
        wanted = {shelf: _longest(here) + self._spare.get(shelf, 0) for shelf, here in self._shelves.items()}
        roomy = {shelf: columns + columns // 8 + _ROOM for shelf, columns in wanted.items()}
        needed = {shelf: len(self._shelves[shelf]) * columns for shelf, columns in roomy.items()}
        sizes = {shelf: self._cache.sizes.get(shelf, (0, 0)) for shelf in needed}
        self._cache.roomy = 5 * sum(needed.values()) <= 4 * most
        wasted = {shelf: slots * columns - needed[shelf] for shelf, (slots, columns) in sizes.items()}
        for shelf in sorted(wasted, key=lambda one: -wasted[one]):
            too_large = 4 * wasted[shelf] > needed[shelf]
            self._patience[shelf] = self._patience.get(shelf, 0) + 1 if too_large else 0
            if self._patience[shelf] > PATIENCE or self._cache.num_columns > most:
                columns = roomy[shelf] if self._cache.roomy else wanted[shelf] + _ROOM
                slots = len(self._shelves[shelf]) * 9 // 8
                self._cache.resize(shelf, min(sizes[shelf][0], slots), min(sizes[shelf][1], columns))
                self._spare.pop(shelf, None)

    def _new(self) -> int:
        self._next += 1
        self._shelves[self._next] = []
        return self._next

    def _drop(self, shelf: int) -> None:
        del self._shelves[shelf]
        self._spare.pop(shelf, None)
        self._patience.pop(shelf, None)
        self._cache.drop(shelf)


def cut(lengths: Sequence[int], worth: int) -> list[tuple[int, int]]:
    """Ascending lengths to runs [start, end) of them: the cut with the least padding, a run counted as `worth` columns.

    Padding is what the rows of a run fall short of its longest. Exact: the best cut of the first rows ends in a run
    that follows the best cut of those before it.
    """
    ends = [index for index in range(1, len(lengths)) if lengths[index] > lengths[index - 1]] + [len(lengths)]
    best = {0: (0, 0)}  # of the first rows: (its cost, where its last run begins)
    for end in ends:
        best[end] = min((cost + (end - start) * lengths[end - 1] + worth, start) for start, (cost, _) in best.items())
    runs: list[tuple[int, int]] = []
    end = len(lengths)
    while end:
        start = best[end][1]
        runs.append((start, end))
        end = start
    return runs[::-1]


def bound(num_tokens: int, num_rows: int) -> int:
    """The most columns that a cache aims to hold for so many tokens in so many rows: half more, and some a row."""
    return num_tokens + num_tokens // 2 + 2048 + 2 * _ROOM * num_rows


def _longest(rows: Sequence[Row]) -> int:
    return max((len(row.tokens) for row in rows), default=0)
