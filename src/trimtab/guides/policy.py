"""A fine-tuned policy as a guide of the base it was tuned from: DPO, RLHF, multi-objective RL and their soups.

The score is log π_θ − log π_base, so with weight λ the mix is π_base^(1−λ) · π_θ^λ: the base at 0, the policy itself at
1, decoding-time realignment between and beyond (DeRa, Liu et al., arXiv 2402.02992, equation 10). So a policy that was
tuned at one KL price gives a whole frontier, and its KL to the base is exact in the trace.

Where it differs from DeRa's released code: the policy is a row of the base's own forward pass where it is an adapter;
the mix is float32.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core import Candidates, GuideSession, LanguageModel, ModelSession, Prompt, TokenIds
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.sessions import SessionView


@dataclass(frozen=True)
class TunedPolicy:
    """A policy that was tuned from the base; `policy` is the same weights as an ARM or as an adapter for one."""

    policy: ARM | AdapterARM

    needs_hidden = False
    needs_context = False
    selection = None

    @property
    def weight(self) -> float:
        return self.policy.weight

    @property
    def max_length(self) -> int | None:
        return self.policy.max_length

    def bind(self, base: LanguageModel) -> TunedPolicy:
        return dataclasses.replace(self, policy=self.policy.bind(base))

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return self.policy.prompt_ids(prompt, base_ids)

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        return TunedPolicySession(self.policy.open(beside))


class TunedPolicySession(SessionView[GuideSession]):
    """The growing sequences of a tuned policy."""

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] log π_θ − log π_base; 0 where the base forbids, which it does at any score."""
        scores = self._session.score(candidates)
        forbidden = torch.isneginf(candidates.logprobs)
        return (scores - candidates.logprobs.to(scores)).masked_fill(forbidden, 0.0)
