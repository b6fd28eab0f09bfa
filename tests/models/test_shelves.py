"""Rows cost what they hold: those of like length share a shelf, and no number depends on which."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.test_decoder_laws import WORLDS, check_company
from tests.models.test_hf import assert_rows
from tests.tiny import tiny_module
from trimtab.models.forward import row_cache as rows
from trimtab.models.forward import shelves, trunk
from trimtab.models.forward.row_cache import Layout, RowCache, RowLayer, give_back
from trimtab.models.forward.shelves import Row, Shelves, bound, cut
from trimtab.models.forward.trunk import Trunk, TrunkSession
from trimtab.models.hf import HFModel

LONG = 700


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shelves of tiny sequences: a pass is worth two columns, and nothing too large is kept."""
    monkeypatch.setattr(Trunk, "_worth", lambda self: 2)
    monkeypatch.setattr(shelves, "PATIENCE", 1)
    monkeypatch.setattr(shelves, "_ROOM", 2)


def a_session(max_length: int = 1024) -> tuple[torch.nn.Module, TrunkSession]:
    module = tiny_module(max_position_embeddings=max_length)
    session = HFModel(module).open()
    assert isinstance(session, TrunkSession)
    return module, session


def prompt(dice: random.Random, length: int) -> list[int]:
    return [dice.randrange(2, 50) for _ in range(length)]


def runs_of(lengths: list[int]) -> Iterator[list[tuple[int, int]]]:
    """Every way to cut a list into runs."""
    inner = range(1, len(lengths))
    for number in range(len(lengths)):
        for places in itertools.combinations(inner, number):
            yield list(itertools.pairwise([0, *places, len(lengths)]))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8).map(sorted), st.integers(0, 80))
def test_the_cut_is_the_cheapest_of_all(lengths: list[int], worth: int) -> None:
    def cost(runs: list[tuple[int, int]]) -> int:
        return sum((end - start) * lengths[end - 1] + worth for start, end in runs)

    found = cut(lengths, worth)
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(lengths)
    assert cost(found) == min(map(cost, runs_of(lengths)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.usefixtures("narrow")
def test_whatever_lies_where_each_row_is_its_own(family: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of any length join, grow, fork, look ahead and leave; each gives what the model gives it alone."""
    dice = random.Random(seed)
    monkeypatch.setattr(Trunk, "_worth", lambda self: dice.choice([2, 8, 30]))
    module = tiny_module(family)
    session = HFModel(module).open()
    assert isinstance(session, TrunkSession)
    rows: list[list[int]] = []
    looked: list[list[int]] = []  # for each row, the candidates it has looked at
    used = set()
    for _ in range(30):
        for _ in range(dice.randint(0, 2) if len(rows) < 12 else 0):
            rows.append(prompt(dice, dice.choice([1, 2, 9, 20])))
            looked.append(prompt(dice, 3))
            session.admit([list(rows[-1])])
        if not rows:
            continue
        if dice.random() < 0.5:
            assert_rows(session.logprobs(), module, rows)
        some = [row for row in range(len(rows)) if dice.random() < 0.8] or [0]
        tokens = [dice.choice(looked[row]) for row in some]
        session.advance(torch.tensor(some), torch.tensor(tokens))
        for row, token in zip(some, tokens, strict=True):
            rows[row].append(token)
        if dice.random() < 0.3:
            kept = [dice.randrange(len(rows)) for _ in range(dice.randint(len(rows) // 2, len(rows)))]
            session.keep(torch.tensor(kept, dtype=torch.int64))
            rows, looked = [list(rows[row]) for row in kept], [looked[row] for row in kept]
        if rows:
            assert_rows(session.logprobs(), module, rows)
            looked = [prompt(dice, 3) for _ in rows]
            session.peek(torch.tensor(looked))
        if len(rows) > 1 and dice.random() < 0.5:  # others leave between a look and what comes of it
            gone = dice.randrange(len(rows) - 1)
            session.keep(torch.tensor([row for row in range(len(rows)) if row != gone]))
            del rows[gone], looked[gone]
        used.add(session.trunk.num_shelves)
    session.keep(torch.tensor([], dtype=torch.int64))
    assert session.trunk.num_bytes == 0
    assert max(used) > 1


def test_a_row_whose_neighbour_leaves_takes_its_accepted_candidate_along() -> None:
    dice = random.Random(0)
    module, session = a_session()
    rows = [prompt(dice, 5) for _ in range(3)]
    session.admit([list(ids) for ids in rows])
    session.peek(torch.tensor([[7, 8, 9]] * 3))
    session.advance(torch.arange(3), torch.tensor([9, 9, 9]))
    session.keep(torch.tensor([1, 2]))
    session.advance(torch.arange(2), torch.tensor([4, 5]))
    assert_rows(session.logprobs(), module, [[*rows[1], 9, 4], [*rows[2], 9, 5]])


@pytest.mark.parametrize("world", ["llama", "mistral"])
@pytest.mark.usefixtures("narrow")
def test_company_on_other_shelves_changes_no_answer(world: str) -> None:
    assert check_company(*WORLDS[world](), 0) > 30
    assert check_company(*WORLDS[world](), 1, 3) > 30


def test_a_long_row_costs_its_neighbours_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen short rows beside a long one; memory is bounded then, when it has gone, and when all have."""
    monkeypatch.setattr(trunk, "_LEAST_WORTH", 256)
    dice = random.Random(0)
    module, session = a_session()
    short = [prompt(dice, dice.randint(4, 12)) for _ in range(15)]
    session.admit([list(ids) for ids in short])
    session.logprobs()
    before = session.trunk.num_columns
    longest = prompt(dice, LONG)
    session.admit([longest[:100]])
    for start in range(100, LONG, 100):
        session.logprobs()
        for token in longest[start : start + 100]:
            session.advance(torch.tensor([15]), torch.tensor([token]))
    assert_rows(session.logprobs(), module, [*short, longest])
    held = LONG + sum(map(len, short))
    assert session.trunk.num_columns <= before + LONG + LONG // 2
    assert session.trunk.num_columns <= 3 * held
    assert session.trunk.num_bytes == session.trunk.num_columns * session.token_bytes
    session.keep(torch.arange(15))
    assert session.trunk.num_columns <= before
    session.keep(torch.tensor([], dtype=torch.int64))
    assert session.trunk.num_columns == session.trunk.num_bytes == 0


def test_memory_that_runs_out_amid_the_layers_leaves_every_row_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(0)
    module, session = a_session()
    known = [prompt(dice, 60), prompt(dice, 50)]
    session.admit([list(ids) for ids in known])
    session.logprobs()
    resize, calls = RowLayer.resize, iter([True, False])

    def failing(self: RowLayer, shelf: int) -> None:
        if not next(calls, True):
            raise MemoryError
        resize(self, shelf)

    monkeypatch.setattr(RowLayer, "resize", failing)
    tokens = prompt(dice, 6)  # past the columns that there are
    for token in tokens:
        session.advance(torch.arange(2), torch.tensor([token] * 2))
    with pytest.raises(MemoryError):
        session.logprobs()
    assert_rows(session.logprobs(), module, [[*ids, *tokens] for ids in known])


def test_much_memory_goes_back_to_the_system_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(rows, "give_back", lambda: given.append(1))
    _, session = a_session()
    for _ in range(2):
        session.admit([[5, 6, 7]])
        session.logprobs()
        session.keep(torch.tensor([], dtype=torch.int64))
        monkeypatch.setattr(rows, "_MUCH", 64 * session.token_bytes)
    assert given == [1]
    give_back()  # which any C library survives


def test_short_rows_are_not_padded_to_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "_LEAST_WORTH", 256)
    passes: list[tuple[int, int]] = []
    begin = RowCache.begin

    def noting(self: RowCache, layout: Layout) -> None:
        passes.append((len(layout.slots), layout.horizon))
        begin(self, layout)

    dice = random.Random(0)
    _, session = a_session()
    session.admit([prompt(dice, 10) for _ in range(8)] + [prompt(dice, LONG)])
    session.logprobs()
    monkeypatch.setattr(RowCache, "begin", noting)
    for _ in range(3):
        session.advance(torch.arange(9), torch.tensor(prompt(dice, 9)))
        session.logprobs()
    assert sorted(passes) == [(1, LONG + 1), (1, LONG + 2), (1, LONG + 3), (8, 11), (8, 12), (8, 13)]


def test_rows_of_like_length_are_one_pass_and_one_view(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[bool] = []
    begin = RowCache.begin

    def noting(self: RowCache, layout: Layout) -> None:
        begin(self, layout)
        gathered.append(self._pool.rows is not None)

    monkeypatch.setattr(RowCache, "begin", noting)
    dice = random.Random(0)
    _, session = a_session()
    session.admit([prompt(dice, dice.randint(30, 60)) for _ in range(16)])
    session.logprobs()
    gathered.clear()
    for _ in range(5):
        session.advance(torch.arange(16), torch.tensor(prompt(dice, 16)))
        session.logprobs()
    assert gathered == [False] * 5


def test_what_passes_need_again_and_again_is_not_given_back() -> None:
    """Forks that come and go at each step, as in a rollout, find the memory of those before them."""
    dice = random.Random(0)
    _, session = a_session()
    session.admit([prompt(dice, 10) for _ in range(4)])
    session.logprobs()
    sizes = []
    for _ in range(12):
        session.keep(torch.tensor([0, 1, 2, 3] + [0, 1, 2, 3] * 8))
        session.advance(torch.arange(4, 36), torch.tensor(prompt(dice, 32)))
        session.logprobs()
        sizes.append((session.trunk.num_shelves, session.trunk.num_columns))
        session.keep(torch.arange(4))
        session.advance(torch.arange(4), torch.tensor(prompt(dice, 4)))
        session.logprobs()
        sizes.append((session.trunk.num_shelves, session.trunk.num_columns))
    assert {shelves for shelves, _ in sizes} == {1}
    assert len(set(sizes)) == 1
    for _ in range(shelves.PATIENCE + 2):
        session.advance(torch.arange(4), torch.tensor(prompt(dice, 4)))
        session.logprobs()
    assert session.trunk.num_columns <= 6 * 192


def walk(dice: random.Random, max_rows: int, num_steps: int) -> Iterator[tuple[int, int, int, float]]:
    """(columns held, tokens, rows, passes) of each step of a server's life, without a model."""
    cache = RowCache()
    held = Shelves(cache)
    rows: list[Row] = []
    ends: dict[int, tuple[int, int]] = {}
    for _ in range(num_steps):
        while len(rows) < max_rows and dice.random() < 0.5:
            rows.append(Row([0], None))
            num_prompt = int(10 ** dice.uniform(0, 3.5))
            ends[id(rows[-1])] = num_prompt, num_prompt + dice.randint(1, 300)
        for row in rows:
            row.tokens = row.tokens + [0] * max(1, min(256, ends[id(row)][0] - len(row.tokens)))
        worth = max(2048, sum(len(row.tokens) for row in rows) // 16)
        places = held.arrange(rows, worth)
        for shelf, here in places.items():
            cache.reserve(shelf, len(here), max(len(row.tokens) for row in here))
        for row in rows:
            row.length = len(row.tokens)
        yield cache.num_columns, sum(len(row.tokens) for row in rows), len(rows), len(places)
        for row in [row for row in rows if len(row.tokens) >= ends[id(row)][1]]:
            held.remove(row)
            rows.remove(row)


@pytest.mark.parametrize("max_rows", [4, 16, 64])
def test_memory_follows_what_the_rows_hold(max_rows: int) -> None:
    for seed in range(3):
        for num_columns, num_tokens, num_rows, _ in walk(random.Random(seed), max_rows, 150):
            assert num_columns <= bound(num_tokens, num_rows) * 1.25
