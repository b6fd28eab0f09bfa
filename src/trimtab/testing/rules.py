"""The laws of a rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core import Candidates, Rule
from trimtab.rules import NEVER, mix
from trimtab.testing.laws import (
    ALONE,
    CONSTANT,
    FORBIDDEN,
    PURE,
    TOLERANCE,
    WEIGHT_ZERO,
    WELL_FORMED,
    LawViolation,
    same,
)


def check_rule(rule: Rule, *, num_candidates: int = 16, tolerance: float = TOLERANCE, seed: int = 0) -> None:
    """Run every law of a rule on random candidates, some of them forbidden. Raises LawViolation."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(8, num_candidates, generator=generator).log_softmax(1).sort(1, descending=True).values
    scores = torch.randn(8, num_candidates, generator=generator) * 3
    for row in range(1, 8):
        base[row, torch.randperm(num_candidates, generator=generator)[: row % 4]] = NEVER
    case = _RuleCase(rule, base, scores, tolerance)
    for law in (_check_policy, _check_weight_zero, _check_forbidden, _check_constant, _check_rows_of_a_policy):
        law(case)


@dataclass(frozen=True)
class _RuleCase:
    """A rule and a batch to try it on: base log-probabilities [B, K], best first, and scores [B, K]."""

    rule: Rule
    base: Tensor
    scores: Tensor
    tolerance: float

    def policy(self, scores: Tensor, rows: slice = slice(None)) -> Tensor:
        """[B, K] policy; checks that the rule leaves its arguments alone."""
        base = self.base[rows]
        candidates = Candidates(torch.arange(base.shape[1]).repeat(len(base), 1), base.clone())
        given = scores.clone()
        policy = self.rule.policy(candidates, given)
        if not (torch.equal(candidates.logprobs, base) and torch.equal(given.nan_to_num(), scores.nan_to_num())):
            raise LawViolation(PURE, "policy wrote into its arguments")
        return policy


def _check_policy(case: _RuleCase) -> None:
    policy = case.policy(case.scores)
    if policy.dtype != torch.float32 or policy.shape != case.base.shape:
        found = f"{tuple(policy.shape)} {policy.dtype}"
        raise LawViolation(WELL_FORMED, f"the policy is {found}; it must be {tuple(case.base.shape)} torch.float32")
    _check_total(WELL_FORMED, policy, case.tolerance)


def _check_weight_zero(case: _RuleCase) -> None:
    unguided = case.policy(torch.zeros_like(case.scores))
    same(WEIGHT_ZERO, "the policy of no scores", unguided, case.base.log_softmax(1), case.tolerance)
    hostile = case.scores.masked_fill(case.scores < 0, NEVER)
    silenced = case.policy(mix(case.base, [(hostile, torch.zeros(len(case.base)))]))
    if not torch.equal(silenced, unguided):
        same(WEIGHT_ZERO, "the policy of a guide at weight 0, bit for bit", silenced, unguided, 0.0)


def _check_forbidden(case: _RuleCase) -> None:
    never = case.base == NEVER
    for score in (0.0, 1e30, torch.inf, torch.nan, NEVER):
        policy = case.policy(case.scores.masked_fill(never, score))
        if not bool((policy[never] == NEVER).all()):
            worst = float(policy[never].max())
            raise LawViolation(FORBIDDEN, f"at score {score} a token that the base forbids has log-probability {worst}")
    vetoed = torch.zeros_like(never)
    vetoed[:, 0] = True
    policy = case.policy(case.scores.masked_fill(vetoed, NEVER))
    if not bool((policy[vetoed] == NEVER).all()):
        raise LawViolation(FORBIDDEN, f"at score −inf a token has log-probability {float(policy[vetoed].max())}")
    _check_total(FORBIDDEN, policy, case.tolerance)


def _check_total(law: str, policy: Tensor, tolerance: float) -> None:
    same(law, "ln of the policy's total probability", policy.logsumexp(1), torch.zeros(len(policy)), tolerance)


def _check_constant(case: _RuleCase) -> None:
    shift = torch.linspace(-20, 20, len(case.base))[:, None]
    shifted = case.policy(case.scores + shift)
    same(CONSTANT, "the policy with and without", shifted, case.policy(case.scores), case.tolerance)


def _check_rows_of_a_policy(case: _RuleCase) -> None:
    together = case.policy(case.scores)
    for row in range(len(together)):
        one = slice(row, row + 1)
        alone = case.policy(case.scores[one], one)
        same(ALONE, f"the policy of row {row}, in a batch and alone", together[one], alone, case.tolerance)
