"""From base log-probabilities and guides' scores to the policy that is sampled from. Pure functions of tensors.

Everything is added in float32, whatever the models run in: mixing in bfloat16 loses about one part in eight in the
tail. Weights are used as they are given; nothing renormalises them, so changing one never changes the temperature.

Forbidding is kept apart from adding, because arithmetic on infinities forgets it: 0 · −inf is NaN, and a negative
weight would turn a guide's veto into a certainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core import Candidates

NEVER = -math.inf
"""The log-probability of what cannot happen."""


def mix(base: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Σᵢ weightᵢ · scoreᵢ: [B, K] float32, ready for `Rule.policy`.

    `base` is [B, K] and gives shape and device; each part is a guide's scores [B, K] with its weights [B].

    * Weight 0 adds exactly nothing in its row, whatever the scores there are (−inf and NaN included).
    * A score of −inf forbids at every other weight, negative ones too: the result is −inf.
    * A score of +inf means that the guide is broken; it becomes NaN, for `not_finite_rows` to find.
    """
    total = torch.zeros_like(base, dtype=torch.float32)
    for scores, weights in parts:
        total = _add(total, scores.to(torch.float32), weights.to(total)[:, None])
    return total


def _add(total: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """One more guide, added to `total` in place: scores [B, K], weights [B, 1]."""
    if bool(torch.isfinite(scores.sum())):  # then every score is
        return total.add_(scores * weights)
    unused = weights == 0
    vetoed = torch.isneginf(scores).logical_and_(~unused).logical_or_(torch.isneginf(total))
    term = torch.nan_to_num(scores, nan=math.nan, posinf=math.nan, neginf=0.0).mul_(weights)
    return total.add_(term.masked_fill_(unused, 0.0)).masked_fill_(vetoed, NEVER)


@dataclass(frozen=True, slots=True)
class Tilt:
    """π(y) ∝ π_base(y) · exp(Σᵢ weightᵢ · scoreᵢ(y)), normalised over the candidates.

    With an autoregressive reward model at weight 1/β as the guide, this is how GenARM decodes (arXiv 2410.08193).
    """

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        """[B, K] float32 log-probabilities from [B, K] weighted scores (`mix`).

        A candidate at −inf in the base stays there whatever its score is, NaN and +inf included; a score of −inf
        forbids. A row whose candidates are all forbidden comes back as −inf throughout, one with a NaN that counts
        as NaN: see `dead_end_rows` and `not_finite_rows`.
        """
        base = candidates.logprobs.to(torch.float32)
        tilted = base + scores.to(torch.float32)
        if bool(not_finite_rows(scores).any()):  # −inf plus anything else is −inf already
            tilted.masked_fill_(torch.isneginf(base), NEVER)
        policy = torch.log_softmax(tilted, dim=-1)
        if bool(bad_rows(tilted).any()):  # log_softmax makes NaN of every entry of such a row
            policy.masked_fill_(torch.isneginf(tilted), NEVER)
        return policy


def not_finite_rows(logprobs: Tensor) -> Tensor:
    """[B] bool: rows of [B, K] that hold a NaN or +inf, which no log-probability or score may be."""
    top = logprobs.amax(dim=-1)  # amax passes NaN on
    return torch.isnan(top) | torch.isposinf(top)


def dead_end_rows(logprobs: Tensor) -> Tensor:
    """[B] bool: rows of [B, K] in which every candidate is forbidden, so that nothing can be sampled."""
    return torch.isneginf(logprobs.amax(dim=-1))


def bad_rows(logprobs: Tensor) -> Tensor:
    """[B] bool: rows of [B, K] that cannot be sampled from: `not_finite_rows` or `dead_end_rows`, in one pass."""
    return ~torch.isfinite(logprobs.amax(dim=-1))
