"""Numbers from a seed, a position and an id: the published mixer's, even, independent, and without a memory."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from trimtab.mixing.noise import BLOCK, block_starts, race_times, step_key, step_keys, times_within, uniforms

NUM = 20_000
FALSE_ALARM = 1e-4


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as it is published (Vigna's splitmix64.c), in plain Python."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        numbers.append(z ^ (z >> 31))
    return numbers


def test_the_mixer_is_splitmix64() -> None:
    """Its first outputs at state 1234567, as Rosetta Code and others list them, and the keys that are made of it."""
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]
    [start] = splitmix64(11, 1)
    assert [step_key(11, position) % 2**64 for position in range(4)] == splitmix64(start, 4)
    [found] = uniforms(torch.tensor([1234567]), torch.tensor([[0, 1]])).tolist()
    assert found == [((number >> 12) + 0.5) / 2**52 for number in splitmix64(1234567, 2)]


def names(kind: str) -> tuple[list[tuple[int, int]], Tensor]:
    """(seed, position) of some draws and the ids that are asked about: all in one seed, position, id, or a square."""
    if kind == "ids":
        return [(0, 0)], torch.arange(NUM)[None]
    if kind == "seeds":
        return [(seed, 0) for seed in range(NUM)], torch.zeros(NUM, 1, dtype=torch.int64)
    if kind == "positions":
        return [(1, position) for position in range(NUM)], torch.zeros(NUM, 1, dtype=torch.int64)
    return [(2**63 - 1 - row, row) for row in range(200)], torch.arange(100).expand(200, -1)


KINDS = ("ids", "seeds", "positions", "square")


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_uniform_and_times_exponential(kind: str) -> None:
    pairs, ids = names(kind)
    keys = step_keys(pairs, "cpu")
    assert kstest(uniforms(keys, ids).flatten().numpy(), "uniform").pvalue > FALSE_ALARM
    times = race_times(keys, ids).flatten()
    assert bool((times > 0).all())
    assert kstest(times.numpy(), "expon").pvalue > FALSE_ALARM


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_have_nothing_to_do_with_each_other(kind: str) -> None:
    """Pairs of neighbours fill a square evenly: 64 cells, chi-square."""
    pairs, ids = names(kind)
    keys = step_keys(pairs, "cpu")
    for numbers in (uniforms(keys, ids).flatten(), (-race_times(keys, ids)).exp().flatten()):
        cells = (numbers * 8).long()
        counts = (8 * cells[:-1] + cells[1:]).bincount(minlength=64)
        assert chisquare(counts).pvalue > FALSE_ALARM


def test_seeds_0_and_1_and_a_seed_of_another_position_are_strangers() -> None:
    ids = torch.arange(NUM).expand(4, -1)
    found = race_times(step_keys([(0, 0), (1, 0), (0, 1), (1, 1)], "cpu"), ids).log()
    correlation = torch.corrcoef(found) - torch.eye(4)
    assert float(correlation.abs().max()) < 4 / NUM**0.5


def test_who_is_first_of_a_block_is_anybody_and_the_times_of_a_block_are_independent() -> None:
    keys = step_keys([(seed, 3) for seed in range(NUM)], "cpu")
    times = race_times(keys, torch.arange(BLOCK).expand(NUM, -1))
    assert chisquare(times.argmin(1).bincount(minlength=BLOCK)).pvalue > FALSE_ALARM
    assert kstest((times.amin(1) * BLOCK).numpy(), "expon").pvalue > FALSE_ALARM
    assert kstest(times.amax(1).numpy(), lambda t: (1 - torch.tensor(-t).exp().numpy()) ** BLOCK).pvalue > FALSE_ALARM
    correlation = torch.corrcoef(times.T.log()) - torch.eye(BLOCK)
    assert float(correlation.abs().max()) < 5.5 / NUM**0.5


def test_a_number_does_not_depend_on_what_else_is_asked() -> None:
    keys = step_keys([(5, 8), (6, 2)], "cpu")
    everything = race_times(keys, torch.arange(1000).expand(2, -1))
    some = torch.tensor([[7, 999, 64], [63, 0, 500]])
    assert torch.equal(race_times(keys, some), everything.gather(1, some))
    assert torch.equal(race_times(keys[1:], some[1:, :1]), everything[1:, 63:64])
    starts, places = block_starts(keys, 20)
    assert torch.equal(starts[:, :15], everything[:, :960].unflatten(1, (15, BLOCK)).amin(-1))
    assert torch.equal(places[:, :15], everything[:, :960].unflatten(1, (15, BLOCK)).argmin(-1))
    blocks = torch.tensor([[3, 0], [9, 12]])
    ids, times = times_within(keys, blocks, starts.gather(1, blocks), places.gather(1, blocks))
    assert torch.equal(times, everything.gather(1, ids))


def test_the_numbers_stay_what_they_are() -> None:
    """Seeds are in papers and records: another number here would be another answer everywhere."""
    [found] = race_times(step_keys([(0, 0)], "cpu"), torch.tensor([[0, 1, 64, 151_935]])).tolist()
    assert found == pytest.approx(
        [1.9863356418710854, 0.0402852178245043, 1.720920160365865, 1.1463569322420633], rel=1e-12
    )
