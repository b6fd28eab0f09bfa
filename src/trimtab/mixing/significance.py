"""How much an agent's say matters at a token, and whether its gate opens there. Functions of tensors.

TUSA's gate, for guides that accept or reject candidates (MARA's agents, arXiv 2505.19743). Of the first candidate, the
most probable of those that the guide is shown:

    C = KL(softmax(the guide's logits of reject and accept) ‖ uniform) = log 2 − entropy, in nats
    S = −log π_base(candidate) / log V
    R = C · S,  τ = α · mean of the answer's last ten R

Where R < τ the candidate is the token, and no other one is looked at. Where R ≥ τ the guide's rule goes on as without a
gate. Before an answer's first R there is no mean: τ is 0, so the guide is asked. A token with a single candidate has no
R, since nothing is asked about it.

Where this differs from its paper: there S is the candidate's normalised inverse document frequency over a corpus. A
corpus belongs to no model, so S is here the base's own surprisal of the candidate, which needs nothing besides. Both
say that a common word matters little, but the paper's is a word's wherever it stands, and a surprisal is the place's.
So none of the paper's figures is claimed for it. The paper's temperature λ of the softmax is 1, and log V changes no
decision, since it divides R and τ alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def certainty(log_odds: Tensor) -> Tensor:
    """C, from log-odds of acceptance of any shape: float64 nats, 0 where the odds are even and log 2 where it is sure.

    −inf and +inf are sure; NaN stays NaN.
    """
    odds = log_odds.to(torch.float64)
    entropy = torch.special.entr(torch.sigmoid(odds)) + torch.special.entr(torch.sigmoid(-odds))
    surer: Tensor = math.log(2) - entropy
    return surer.clamp(min=0.0)


def least_significance(alpha: float, past: Sequence[float]) -> float:
    """τ, from the significances of an answer's last tokens that have one; 0 where there is none yet."""
    return alpha * sum(past) / len(past) if past else 0.0


@dataclass(frozen=True, slots=True)
class SignificanceGate:
    """The gates of R rows at one token each."""

    surprisal: Tensor
    """[R] float64: S of each row's first candidate; NaN: the row has no gate."""
    least: Tensor
    """[R] float64: τ; NaN where there is no gate."""

    @staticmethod
    def of(logprobs: Tensor, vocab_size: int, least: Tensor) -> SignificanceGate:
        """From π_base's log-probabilities of the first candidates [R], V and τ [R] (NaN: no gate)."""
        surprisal = -logprobs.to(least) / math.log(max(2, vocab_size))
        return SignificanceGate(torch.where(least.isnan(), least, surprisal), least)

    @property
    def gated(self) -> Tensor:
        """[R] bool: rows that have a gate."""
        return ~self.least.isnan()

    def significance(self, log_odds: Tensor) -> Tensor:
        """[R] float32: R of each row, from the log-odds of its first candidate [R]; NaN where there is none.

        It is rounded so that a mean of ten alike is that very number.
        """
        return (certainty(log_odds) * self.surprisal).to(torch.float32)

    def closed(self, log_odds: Tensor) -> Tensor:
        """[R] bool: rows whose first candidate is taken as it is, from its log-odds [R] (NaN: not looked at)."""
        return self.significance(log_odds).to(self.least) < self.least
