"""The laws of a rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core import Candidates, Rule, SelectingRule
from trimtab.errors import OptionError
from trimtab.mixing.rules import NEVER
from trimtab.testing.laws import (
    ALONE,
    CONSTANT,
    FORBIDDEN,
    LAZY,
    PURE,
    TOLERANCE,
    WEIGHT_ZERO,
    WELL_FORMED,
    LawViolation,
    same,
    stating,
)


def check_rule(
    rule: Rule | SelectingRule, *, num_candidates: int = 16, tolerance: float = TOLERANCE, seed: int = 0
) -> None:
    """Run every law of a rule on random candidates, up to three a row of them forbidden. Raises LawViolation.

    A rule that selects (one with `lazy`) need not give the base at weight 0, where it does not run, and a constant may
    change what it accepts; if it is lazy, what comes after the first weighted score above 0 must not change anything.
    """
    if num_candidates < 5:
        raise OptionError(f"num_candidates is {num_candidates}; give at least 5, as some of them are forbidden.")
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(8, num_candidates, generator=generator).log_softmax(1)
    for row in range(8):
        base[row, : row % 4] = NEVER
    scores = torch.randn(8, num_candidates, generator=generator) * 3
    case = _RuleCase(rule, base.sort(1, descending=True).values, scores, tolerance)
    checks = {WELL_FORMED: _check_policy, ALONE: _check_alone, FORBIDDEN: _check_forbidden}
    if not hasattr(rule, "lazy"):
        checks |= {WEIGHT_ZERO: _check_weight_zero, CONSTANT: _check_constant}
    elif rule.lazy:
        checks[LAZY] = _check_lazy
    for law, check in checks.items():
        with stating(law):
            check(case)


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


def _check_alone(case: _RuleCase) -> None:
    together = case.policy(case.scores)
    for row in range(len(together)):
        one = slice(row, row + 1)
        alone = case.policy(case.scores[one], one)
        same(ALONE, f"the policy of row {row}, in a batch and alone", together[one], alone, case.tolerance)


def _check_weight_zero(case: _RuleCase) -> None:
    unguided = case.policy(torch.zeros_like(case.scores))
    same(WEIGHT_ZERO, "the policy of no scores", unguided, case.base.log_softmax(1), case.tolerance)


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


def _check_lazy(case: _RuleCase) -> None:
    whole = case.policy(case.scores)
    accepted = (case.scores > 0) & (case.base > NEVER)
    later = (accepted.cumsum(1) - accepted.long()) > 0
    for score in (NEVER, -1.0, 100.0):
        same(
            LAZY,
            f"the policy with {score} after the first acceptance",
            case.policy(case.scores.masked_fill(later, score)),
            whole,
            case.tolerance,
        )


def _check_total(law: str, policy: Tensor, tolerance: float) -> None:
    same(law, "ln of the policy's total probability", policy.logsumexp(1), torch.zeros(len(policy)), tolerance)


def _check_constant(case: _RuleCase) -> None:
    shift = torch.linspace(-20, 20, len(case.base))[:, None]
    shifted = case.policy(case.scores + shift)
    same(CONSTANT, "the policy with and without", shifted, case.policy(case.scores), case.tolerance)
