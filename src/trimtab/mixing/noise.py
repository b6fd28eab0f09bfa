"""Random numbers that belong to a seed, a position and a token's id, and to nothing else. Pure functions.

They are counted, not drawn one after another: each is a mix of its three names, so position 7's can be asked for
before position 3's, a token's number is the same whatever other tokens are asked about, and no state is left behind.
The mixer is splitmix64's (Steele, Lea and Flood, OOPSLA 2014, in Stafford's variant 13); it is integer arithmetic, so
CPU and GPU agree.

What they are for is a race: token v arrives at time t_v / p_v, t_v standard exponential, and the first to arrive is v
with probability p_v. It is the Gumbel-max trick with −ln t_v as the Gumbel number (Maddison et al., arXiv 1411.0030,
section 2). Another token's probability changes who wins only where it changes who is first.

A vocabulary is large, so times come in blocks of `BLOCK` ids: the first of a block arrives after an exponential time of
rate `BLOCK`, each of its ids is that first one equally likely, and from there on the others wait as if anew, because
exponential times have no memory. The times are independent and standard exponential as before; but one number a block
says how early anybody in it can be, so that `sampling.draw` looks into few of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 64
"""Ids of one block: a power of 2 below 4096, since the lowest 12 bits of a mix say a place in it."""

_MASK = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_OF_BLOCKS = 0x2545F4914F6CDD1D
"""Tells the stream of a position's blocks from that of its tokens."""


def step_key(seed: int, position: int) -> int:
    """The key of one draw: what all its numbers are mixed from. `position` counts an answer's tokens from 0."""
    return _signed(_mix_number(_mix_number(seed + _STEP) + (position + 1) * _STEP))


def step_keys(names: Sequence[tuple[int, int]], device: torch.device | str) -> Tensor:
    """[N] int64: the keys of (seed, position) pairs."""
    return torch.tensor([step_key(seed, position) for seed, position in names], dtype=torch.int64, device=device)


def uniforms(keys: Tensor, token_ids: Tensor) -> Tensor:
    """A number in (0, 1) for each token: keys [N] and ids [N, K] -> [N, K] float64, never 0 and never 1."""
    return _fraction(_mix(_counted(keys[:, None], token_ids)))


def race_times(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard exponential times: keys [N] and ids [N, K] -> [N, K] float64 > 0."""
    starts, places = _first_arrivals(keys, token_ids // BLOCK)
    return _times(keys[:, None], token_ids, starts, places)


def block_starts(keys: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """When the first of each block arrives and which of its ids that is: keys [N] -> [N, num_blocks] float64, int64."""
    return _first_arrivals(keys, torch.arange(num_blocks, device=keys.device)[None])


def times_within(keys: Tensor, blocks: Tensor, starts: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The ids of some blocks and their `race_times`: keys [N], the rest [N, M] -> [N, M · BLOCK] int64, float64.

    `starts` and `places` are what `block_starts` says of those blocks.
    """
    token_ids = blocks[..., None] * BLOCK + torch.arange(BLOCK, device=keys.device)
    times = _times(keys[:, None, None], token_ids, starts[..., None], places[..., None])
    return token_ids.flatten(1), times.flatten(1)


def _first_arrivals(keys: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    bits = _mix(_counted(_mix(keys ^ _signed(_OF_BLOCKS))[:, None], blocks))
    return _fraction(bits).log_().div_(-BLOCK), bits & (BLOCK - 1)


def _times(keys: Tensor, token_ids: Tensor, starts: Tensor, places: Tensor) -> Tensor:
    waits = _fraction(_mix(_counted(keys, token_ids))).log_().neg_()
    return waits.masked_fill_(token_ids % BLOCK == places, 0.0).add_(starts)


def _counted(keys: Tensor, counters: Tensor) -> Tensor:
    """The states of splitmix64 generators that began at `keys`, after so many steps and one."""
    return (counters + 1) * _signed(_STEP) + keys


def _mix(state: Tensor) -> Tensor:
    """splitmix64's output function on int64, in place: products wrap, and shifts are made logical by a mask."""
    state ^= (state >> 30) & (_MASK >> 30)
    state *= _signed(_FIRST)
    state ^= (state >> 27) & (_MASK >> 27)
    state *= _signed(_SECOND)
    state ^= (state >> 31) & (_MASK >> 31)
    return state


def _fraction(bits: Tensor) -> Tensor:
    """The 52 highest bits as a number in (0, 1): float64, so that the half that is added is exact.

    The lowest bits, which say a place in a block, are not among them.
    """
    return ((bits >> 12) & (_MASK >> 12)).to(torch.float64).add_(0.5).mul_(2.0**-52)


def _mix_number(state: int) -> int:
    state &= _MASK
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


def _signed(number: int) -> int:
    """64 bits as torch's int64 holds them."""
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number
