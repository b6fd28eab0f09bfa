"""From base log-probabilities and guides' scores to the policy that is sampled from. Pure functions of tensors.

Everything is added in float32, whatever the models run in: mixing in bfloat16 loses about one part in eight in the
tail. Weights are used as they are given; nothing renormalises them, so changing one never changes the temperature.

Forbidding is kept apart from adding, because arithmetic on infinities forgets it: 0 · −inf is NaN, and a negative
weight would turn a guide's veto into a certainty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core import Candidates
from trimtab.errors import OptionError, unknown_name

NEVER = -math.inf
"""The log-probability of what cannot happen."""


def mix(base: Tensor, parts: Sequence[tuple[Tensor, Tensor]], *, wait: bool = True) -> Tensor:
    """Σᵢ weightᵢ · scoreᵢ: [B, K] float32, ready for `Rule.policy`.

    `base` is [B, K] and gives shape and device; each part is a guide's scores [B, K] with its weights [B]. `wait` False
    takes the careful way at once instead of waiting for the device to tell that every score is finite.

    * Weight 0 adds exactly nothing in its row, whatever the scores there are (−inf and NaN included).
    * A score of −inf forbids at every other weight, negative ones too: the result is −inf.
    * A score of +inf means that the guide is broken; it becomes NaN, for `not_finite_rows` to find.
    """
    total = torch.zeros_like(base, dtype=torch.float32)
    for scores, weights in parts:
        total = _add(total, scores.to(torch.float32), weights.to(total)[:, None], wait)
    return total


def tilt(base: Tensor, scores: Tensor, *, wait: bool = True) -> Tensor:
    """[B, K] float32: base log-probabilities (or logits) plus weighted scores (`mix`), not normalised.

    What is −inf in the base stays so, whatever its score is. `wait` as in `mix`.
    """
    tilted = base.to(torch.float32) + scores.to(torch.float32)
    if not wait or bool(not_finite_rows(scores).any()):  # −inf plus anything else is −inf already
        tilted.masked_fill_(torch.isneginf(base), NEVER)
    return tilted


def _add(total: Tensor, scores: Tensor, weights: Tensor, wait: bool) -> Tensor:
    """One more guide, added to `total` in place: scores [B, K], weights [B, 1]."""
    if wait and bool(torch.isfinite(scores.sum())):  # then every score is
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
        tilted = tilt(candidates.logprobs, scores)
        policy = torch.log_softmax(tilted, dim=-1)
        if bool(bad_rows(tilted).any()):  # log_softmax makes NaN of every entry of such a row
            policy.masked_fill_(torch.isneginf(tilted), NEVER)
        return policy


class _ByThreshold:
    """What the rules that accept or reject share: the weight is a probability, to be exceeded by a candidate's own."""

    __slots__ = ()

    accepts = True

    def check_weight(self, weight: float) -> None:
        if not 0 <= weight < 1:
            raise OptionError(
                f"{weight:g} is not an acceptance threshold; the weight of a guide that accepts or rejects is the "
                "probability that a candidate has to exceed: give at least 0 (off) and less than 1."
            )

    def weigh(self, scores: Tensor, weights: Tensor) -> Tensor:
        """Log-odds [B, K] less those of the thresholds [B, 1]: above 0 where a probability exceeds its threshold."""
        return scores.to(torch.float32) - torch.logit(weights.to(scores.device, torch.float32))


@dataclass(frozen=True, slots=True)
class FirstAccepted(_ByThreshold):
    """The first candidate that is accepted, surely; where none is, the `fallback`: the first, or the last.

    MARA's decoding (arXiv 2505.19743), `top1` in its released code; its training falls back on the last candidate.
    """

    fallback: str = "first"

    lazy = True

    def __post_init__(self) -> None:
        """Raise OptionError for an unknown fallback."""
        if self.fallback not in ("first", "last"):
            raise unknown_name("fallback", self.fallback, ("first", "last"))

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        """[B, K] float32 log-probabilities: 0 at the chosen candidate, −inf elsewhere. Accepted: score > 0."""
        accepted = _accepted(candidates, scores)
        first = accepted.long().argmax(dim=-1)  # the first of the largest
        return _certain(candidates, torch.where(accepted.any(dim=-1), first, _fallback(candidates, self.fallback)))


@dataclass(frozen=True, slots=True)
class RandomAccepted(_ByThreshold):
    """One of the accepted candidates, each as likely; the first candidate where none is. `random` in MARA's code."""

    lazy = False

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        """[B, K] float32 log-probabilities."""
        accepted = _accepted(candidates, scores)
        number = accepted.sum(dim=-1, keepdim=True)
        even = (-number.to(torch.float32).log()).expand_as(scores).masked_fill(~accepted, NEVER)
        return torch.where(number > 0, even, _certain(candidates, _fallback(candidates, "first")))


@dataclass(frozen=True, slots=True)
class MostAccepted(_ByThreshold):
    """The candidate that is accepted with the highest score, surely; the first where none is accepted.

    `max_prob` in MARA's code. Of equal scores the first wins.
    """

    lazy = False

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        """[B, K] float32 log-probabilities: 0 at the chosen candidate, −inf elsewhere."""
        accepted = _accepted(candidates, scores)
        best = scores.masked_fill(~accepted, NEVER).argmax(dim=-1)
        return _certain(candidates, torch.where(accepted.any(dim=-1), best, _fallback(candidates, "first")))


@dataclass(frozen=True, slots=True)
class WeighedCandidates:
    """π(v) ∝ π_base(v) · exp(weight · score(v)) over the candidates alone.

    ARGS's rule (arXiv 2402.01694, equation 2).
    """

    lazy = False
    accepts = False

    def check_weight(self, weight: float) -> None:
        """Any finite weight means something."""

    def weigh(self, scores: Tensor, weights: Tensor) -> Tensor:
        """[B, K] scores times [B, 1] weights."""
        return scores.to(torch.float32) * weights.to(scores.device, torch.float32)

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        """[B, K] float32 log-probabilities; a row of one candidate, which nothing has scored, keeps it."""
        alone = (~torch.isneginf(candidates.logprobs)).sum(dim=-1, keepdim=True) == 1
        return Tilt().policy(candidates, torch.where(alone, 0.0, scores.to(torch.float32)))


ACCEPTING_RULES: Mapping[str, type[FirstAccepted] | type[RandomAccepted] | type[MostAccepted]] = {
    "first": FirstAccepted,
    "random": RandomAccepted,
    "most": MostAccepted,
}
"""Name -> rule, for agents that accept or reject."""


def _accepted(candidates: Candidates, scores: Tensor) -> Tensor:
    """[B, K] bool; what the base forbids is never accepted, whatever its score."""
    return (scores > 0) & ~torch.isneginf(candidates.logprobs)


def _fallback(candidates: Candidates, which: str) -> Tensor:
    """[B]: the first or the last candidate that the base does not forbid."""
    possible = ~torch.isneginf(candidates.logprobs)
    if which == "first":
        return possible.long().argmax(dim=-1)
    return possible.shape[1] - 1 - possible.flip(-1).long().argmax(dim=-1)


def _certain(candidates: Candidates, index: Tensor) -> Tensor:
    """[B, K]: all probability on `index` [B], none where the base forbids it."""
    sure = torch.full_like(candidates.logprobs, NEVER, dtype=torch.float32).scatter_(1, index[:, None], 0.0)
    return sure.masked_fill_(torch.isneginf(candidates.logprobs), NEVER)


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
