"""Filters on a policy, and the draw. Pure functions of [B, K] log-probabilities with one parameter a row.

The order is temperature -> top-k -> top-p -> min-p -> draw; `sample` is that chain. Each filter sets what it drops to
−inf and leaves the rest as it was: not renormalised, since no later step needs it. At least one token always survives.
A filter that no row uses computes nothing.

Ties: tokens exactly as probable as the last one kept are kept too, by top-k and top-p alike, so that no result depends
on the order of the vocabulary or on the device's sort. transformers' top-k does the same; its top-p splits ties at
random.

Rows must be fit to sample from (`rules.bad_rows`): with a NaN, or every candidate at −inf, the result means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trimtab.mixing.noise import BLOCK, block_starts, race_times, times_within
from trimtab.mixing.rules import NEVER

LOOK = 32
"""How many blocks of ids a draw looks into before it knows how many it needs; no result depends on it."""

WINDOWS = (256, 4096)
"""How many of the best tokens top-p looks at before it sorts the vocabulary, which costs as much as a small model."""

_ROUNDING = 1e-6
"""What rounding leaves of ln 1 in a normalised row of float32."""


def plausible(logprobs: Tensor, alpha: Tensor) -> Tensor:
    """[B, K] bool, True = keep: tokens with at least `alpha` [B] of the best token's probability; alpha 0 keeps all.

    Contrastive decoding's plausibility constraint (arXiv 2210.15097, equation 2), to be applied to the base, and
    Alignment-Aware Decoding's (arXiv 2509.26169), to be applied to a guide.
    """
    return logprobs >= _fraction_of_best(logprobs, alpha)


def penalise_repetition(logprobs: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Subtract ln(penalty) from tokens already in the sequence: [B, K], not renormalised.

    `seen` is [B, K] bool, `penalty` [B] > 0; 1 leaves the row bit for bit. Unlike CTRL's penalty (arXiv 1909.05858),
    which divides logits and so depends on their arbitrary zero, this divides probabilities.
    """
    if bool((penalty == 1).all()):
        return logprobs
    # The logarithm first: the penalty itself may be more than float32 holds.
    return torch.where(seen, logprobs - penalty.log().to(logprobs)[:, None], logprobs)


def shifted(logprobs: Tensor, shifts: Sequence[Mapping[int, float]]) -> Tensor:
    """Add to each row of [B, V] log-probabilities what its mapping from token ids says, in nats; not renormalised.

    A row whose mapping is empty stays bit for bit, and what is at −inf stays there.
    """
    if not any(shifts):
        return logprobs
    rows = [row for row, shift in enumerate(shifts) for _ in shift]
    ids = [token for shift in shifts for token in shift]
    by = torch.tensor([x for shift in shifts for x in shift.values()], dtype=torch.float64, device=logprobs.device)
    places = torch.tensor(rows, device=logprobs.device), torch.tensor(ids, device=logprobs.device)
    return logprobs.index_put(places, by.to(logprobs), accumulate=True)


def answer_shift(
    counts: Mapping[int, int], presence: float, frequency: float, bias: Mapping[int, float]
) -> dict[int, float]:
    """Token id -> bias(v) − presence · [c(v) > 0] − frequency · c(v), c(v) being `counts`, the times that an answer
    holds v so far (OpenAI's penalties and `logit_bias`); in nats. Tokens that it leaves alone are not in it.
    """
    shift = dict(bias)
    if presence or frequency:
        for token, count in counts.items():
            shift[token] = shift.get(token, 0.0) - presence - frequency * count
    return shift


def apply_temperature(logprobs: Tensor, temperature: Tensor) -> Tensor:
    """π^(1/T), normalised, for temperatures [B] >= 0: [B, K].

    Temperature 1 leaves a row bit for bit; temperature 0 puts everything on the most probable token, the first among
    ties.
    """
    greedy, scaled = temperature == 0, (temperature != 0) & (temperature != 1)
    result = logprobs
    if bool(scaled.any()):
        # The best token is moved to 0 first, so that no temperature, however small, pushes every token to −inf.
        limits = torch.finfo(logprobs.dtype)
        divisor = temperature.masked_fill(~scaled, 1.0).clamp(limits.tiny, limits.max).to(logprobs)[:, None]
        shifted = (logprobs - logprobs.amax(dim=-1, keepdim=True)) / divisor
        cooled = torch.log_softmax(shifted, dim=-1)
        result = cooled if bool(scaled.all()) else torch.where(scaled[:, None], cooled, result)
    if bool(greedy.any()):
        best = torch.full_like(logprobs, NEVER).scatter_(1, logprobs.argmax(dim=-1, keepdim=True), 0.0)
        result = torch.where(greedy[:, None], best, result)
    return result


def keep_top_k(logprobs: Tensor, top_k: Tensor) -> Tensor:
    """Keep the `top_k` [B] most probable tokens of each row, ties with the last included; 0 keeps all."""
    rows = ((top_k > 0) & (top_k < logprobs.shape[1])).nonzero().squeeze(1)
    if rows.numel() == 0:
        return logprobs
    ranks = top_k[rows]
    best = logprobs[rows].topk(int(ranks.max())).values
    return _drop_below(logprobs, rows, best.gather(1, ranks.to(torch.int64)[:, None] - 1))


def keep_top_p(logprobs: Tensor, top_p: Tensor) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches `top_p` [B], ties with the last included; 1 keeps all.

    Nucleus sampling (arXiv 1904.09751). Probabilities are those among the tokens that are not at −inf.
    """
    rows = (top_p < 1).nonzero().squeeze(1)
    if rows.numel() == 0:
        return logprobs
    return _drop_below(logprobs, rows, _nucleus_floor(logprobs[rows], top_p[rows].to(torch.float64)[:, None]))


def keep_min_p(logprobs: Tensor, min_p: Tensor) -> Tensor:
    """Drop tokens with less than `min_p` [B] of the best token's probability (arXiv 2407.01082); 0 keeps all."""
    if not bool((min_p > 0).any()):
        return logprobs
    return logprobs.masked_fill(logprobs < _fraction_of_best(logprobs, min_p), NEVER)


def draw(policy: Tensor, keys: Tensor, token_ids: Tensor | None = None) -> Tensor:
    """One position in 0..K-1 for each row: [B] int64, position v with its probability in `policy`.

    `policy` is [B, K] log-probabilities, normalised or not; `keys` [B] int64 name each row's draw (`noise.step_key`);
    `token_ids` [B, K] says which tokens these are, None: the whole vocabulary in order. Token v arrives at
    t_v / p_v, t_v from the key and the token's id alone, and the first is drawn. So a row's draw does not depend on its
    company, and another token that comes, goes or changes makes a difference only where it is first or was. A token of
    probability zero is never drawn.
    """
    if token_ids is not None:
        return _lead(policy, race_times(keys, token_ids)).argmax(dim=-1)
    num_blocks = -(-policy.shape[1] // BLOCK)
    starts, places = block_starts(keys, num_blocks)
    bounds = _lead(_best_of_blocks(policy), starts)
    drawn, leads = _first_of_blocks(policy, keys, bounds, starts, places, min(LOOK, num_blocks))
    num_ahead = (bounds >= leads[:, None]).sum(dim=-1)  # blocks that hold the one drawn, or one that came before it
    rows = (num_ahead > LOOK).nonzero().squeeze(1)
    if rows.numel() == 0:
        return drawn
    width = int(num_ahead.max())
    again, _ = _first_of_blocks(policy[rows], keys[rows], bounds[rows], starts[rows], places[rows], width)
    return drawn.index_copy(0, rows, again)


def final_policy(policy: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """What a policy [B, K] at temperature 1 is drawn from: [B, K], what was dropped at −inf, the rest not renormalised.

    Parameters are [B]. At temperature 0 everything is on the most probable token.
    """
    cooled = apply_temperature(policy, temperature)
    return keep_min_p(keep_top_p(keep_top_k(cooled, top_k), top_p), min_p)


def sample(policy: Tensor, keys: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The whole chain on a policy over the vocabulary [B, V]: a token for each row, [B] int64. Parameters are [B]."""
    if bool((temperature == 0).all()):
        return policy.argmax(dim=-1)
    return draw(final_policy(policy, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p), keys)


def normalised(logprobs: Tensor) -> Tensor:
    """[B, K] log-probabilities whose rows add up to 1. A row that does so already stays as it is, bit for bit."""
    mass = logprobs.logsumexp(dim=-1, keepdim=True)
    return torch.where(mass.abs() < _ROUNDING, logprobs, logprobs - mass)


def _lead(logprobs: Tensor, times: Tensor) -> Tensor:
    """ln p − ln t, float64: the larger, the earlier."""
    return logprobs.to(torch.float64) - times.log()


def _first_of_blocks(
    policy: Tensor, keys: Tensor, bounds: Tensor, starts: Tensor, places: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """The first to arrive in the `width` blocks of the highest bounds, and its lead: [B] int64, [B] float64."""
    blocks = bounds.topk(width).indices
    ids, times = times_within(keys, blocks, starts.gather(1, blocks), places.gather(1, blocks))
    inside = ids < policy.shape[1]
    leads = _lead(policy.gather(1, ids.clamp(max=policy.shape[1] - 1)), times).masked_fill_(~inside, NEVER)
    best = leads.max(dim=-1, keepdim=True)
    return ids.gather(1, best.indices).squeeze(1), best.values.squeeze(1)


def _best_of_blocks(policy: Tensor) -> Tensor:
    """[B, N]: the best log-probability of each block of ids, of a table [B, K]."""
    num_whole = policy.shape[1] // BLOCK
    whole = num_whole * BLOCK
    best = policy[:, :whole].view(len(policy), num_whole, BLOCK).amax(dim=-1) if whole else policy[:, :0]
    return best if whole == policy.shape[1] else torch.cat([best, policy[:, whole:].amax(dim=-1, keepdim=True)], dim=1)


def _fraction_of_best(logprobs: Tensor, fraction: Tensor) -> Tensor:
    """[B, 1]: ln(fraction · p_max). Fractions lie in [0, 1]."""
    return logprobs.amax(dim=-1, keepdim=True) + fraction.to(logprobs).log()[:, None]


def _drop_below(logprobs: Tensor, rows: Tensor, floors: Tensor) -> Tensor:
    """Put what is below floors [N, 1] in the given rows [N] at −inf; leave other rows alone."""
    floor = logprobs.new_full((logprobs.shape[0], 1), NEVER).index_copy(0, rows, floors)
    return logprobs.masked_fill(logprobs < floor, NEVER)


def _nucleus_floor(logprobs: Tensor, goal: Tensor) -> Tensor:
    """[N, 1]: the log-probability of the last token of each row's nucleus, for goals [N, 1] float64.

    Looks at a few of the best tokens, then at more, and sorts everything only for rows that need it.
    """
    floors = torch.full_like(goal, math.nan, dtype=logprobs.dtype)
    top = logprobs.amax(dim=-1, keepdim=True)
    total = (logprobs - top).to(torch.float64).exp().sum(dim=-1, keepdim=True)
    open_rows = torch.arange(len(logprobs), device=logprobs.device)
    for width in (*(w for w in WINDOWS if w < logprobs.shape[1]), logprobs.shape[1]):
        best = logprobs[open_rows].topk(width).values
        mass = ((best - top[open_rows]).to(torch.float64).exp() / total[open_rows]).cumsum(dim=-1)
        short = mass < goal[open_rows]
        position = short.sum(dim=-1, keepdim=True).clamp(max=width - 1)
        floors = floors.index_copy(0, open_rows, best.gather(1, position))
        open_rows = open_rows[short[:, -1]]
        if open_rows.numel() == 0:
            break
    return floors
