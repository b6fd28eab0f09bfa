"""A guide that completes every candidate before it judges it: Transfer-Q* (Chakraborty et al., NeurIPS 2024).

arXiv 2405.20495. Each of the base's top-k candidates is completed greedily by a policy that is already aligned, and the
target reward r₂ of the completed text is its value. Direct (section 3.1): score(v) = logit_base(v) + w · r₂. Indirect
(section 3.2), where the policy was aligned to another reward r₁: logit_base(v) + w · exp((r₂ − r₁)/2) · r₂.
k = 10 and w = 1; 20 tokens of completion direct, 5 indirect.

Where it differs from the authors' code: the policy and the reward models keep a cache of each row; the candidates of
all rows are completed in one batch, and a completion ends at any end-of-sequence token; a completed candidate is read
by the reward models in one pass; the score starts from log-probabilities. A rollout estimates a value: the tokens of
an answer are decided in `decoding` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.core import Candidates, GuideSession, LanguageModel, ModelSession, Prompt, Selection, TokenIds
from trimtab.errors import BaseMismatchError, OptionError
from trimtab.guides.args import (
    RewardAdapter,
    RewardSession,
    SequenceRewards,
    args_selection,
    bound_rewards,
    opened,
)
from trimtab.guides.arm import Adapter
from trimtab.prompts import check_same_vocabulary, num_readable
from trimtab.sessions import SessionGroup

DIRECT_TOKENS = 20
INDIRECT_TOKENS = 5
"""The paper's lengths of a completion."""


@dataclass(frozen=True)
class RolloutGuide:
    """A guide that selects among the base's `top_k` by log-probability plus weight times the value of a completion.

    `policy` completes (None: the base itself), at most `num_tokens` tokens. `rewards` is r₂; with `policy_rewards`,
    what the policy was aligned to (r₁), the indirect form. All read the base's tokens and its prompt. `note` is told
    how many tokens each pass of completions made.
    """

    rewards: SequenceRewards | RewardAdapter
    policy: LanguageModel | Adapter | None = None
    policy_rewards: SequenceRewards | RewardAdapter | None = None
    num_tokens: int = DIRECT_TOKENS
    weight: float = 1.0
    selection: Selection = args_selection()  # noqa: RUF009  frozen
    note: Callable[[int], None] | None = None

    needs_hidden = False
    needs_context = False

    @property
    def max_length(self) -> int | None:
        """What the shortest of its models holds, less the completion of the last token."""
        limits = [limit for part in self._parts if (limit := getattr(part, "max_length", None)) is not None]
        return max(0, min(limits) - self.num_tokens) if limits else None

    @property
    def num_readable(self) -> int | None:
        """How many ids each of its models can be fed, from 0 on; None while all are adapters without a base."""
        sizes = [num_readable(part) for part in self._parts if hasattr(part, "vocab_size")]
        return min(sizes, default=None)

    @property
    def _parts(self) -> list[Any]:
        return [part for part in (self.policy, self.rewards, self.policy_rewards) if part is not None]

    def __post_init__(self) -> None:
        """Raise OptionError for a completion of less than nothing."""
        if self.num_tokens < 0:
            raise OptionError(f"num_tokens is {self.num_tokens}; give 0 (no completion, as in ARGS) or more.")

    def bind(self, base: LanguageModel) -> RolloutGuide:
        policy = self.policy
        if policy is None:
            policy = base
        elif isinstance(policy, LanguageModel):
            check_same_vocabulary(base, policy)
        else:
            policy = policy.on(base)
        r1 = self.policy_rewards
        return replace(
            self,
            policy=policy,
            rewards=bound_rewards(self.rewards, base),
            policy_rewards=None if r1 is None else bound_rewards(r1, base),
        )

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return base_ids

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        if not isinstance(self.policy, LanguageModel):
            raise BaseMismatchError("This guide has no policy to complete with yet. Call guide.bind(model) first.")
        return RolloutSession(
            Rollouts(self.policy, self.policy.open(beside), self.num_tokens, self.note),
            opened(self.rewards, beside),
            None if self.policy_rewards is None else opened(self.policy_rewards, beside),
        )


class RolloutSession(SessionGroup):
    """The growing sequences of a rollout guide: those of its policy and of its reward models."""

    def __init__(self, rollouts: Rollouts, rewards: RewardSession, policy_rewards: RewardSession | None) -> None:
        super().__init__([rollouts.session, rewards, *([] if policy_rewards is None else [policy_rewards])])
        self._rollouts = rollouts
        self._rewards = rewards
        self._policy_rewards = policy_rewards

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K]: r₂ of each completed candidate, times exp((r₂ − r₁)/2) where the form is indirect."""
        shape = candidates.token_ids.shape
        rows = torch.arange(self.num_rows) if candidates.rows is None else candidates.rows.cpu()
        parents = rows.repeat_interleave(shape[1])
        texts = self._rollouts.complete(parents, candidates.token_ids.flatten().tolist())
        target = completed_rewards(self._rewards, parents, texts)
        if self._policy_rewards is not None:
            trained = completed_rewards(self._policy_rewards, parents, texts)
            target = torch.exp((target - trained) / 2) * target
        return target.reshape(shape)


class Rollouts:
    """Greedy completions by a policy, from its cached rows."""

    def __init__(
        self, policy: LanguageModel, session: ModelSession, num_tokens: int, note: Callable[[int], None] | None
    ) -> None:
        self.session = session
        self._note = note
        self._eos_ids = policy.eos_ids
        self._num_tokens = num_tokens

    def complete(self, parents: Tensor, first_ids: Sequence[int]) -> list[list[int]]:
        """Completions of rows `parents` [N] (with repeats) after one token each; that token leads each list."""
        texts = [[token_id] for token_id in first_ids]
        with branches(self.session, parents) as twins:
            alive = torch.tensor([index for index, ids in enumerate(texts) if ids[0] not in self._eos_ids])
            for _ in range(self._num_tokens):
                if not len(alive):
                    break
                self.session.advance(twins[alive], torch.tensor([texts[index][-1] for index in alive.tolist()]))
                best = self.session.logprobs(twins[alive]).argmax(dim=-1).tolist()
                if self._note is not None:
                    self._note(len(best))
                for index, token_id in zip(alive.tolist(), best, strict=True):
                    texts[index].append(token_id)
                alive = alive[torch.tensor([token_id not in self._eos_ids for token_id in best])]
        return texts


def completed_rewards(session: RewardSession, parents: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """[N] rewards of rows `parents` [N] (with repeats) continued by texts, all read in one pass."""
    with branches(session, parents) as twins:
        for position in range(max(map(len, texts), default=0)):
            going = torch.tensor([index for index, ids in enumerate(texts) if len(ids) > position])
            session.advance(twins[going], torch.tensor([texts[index][position] for index in going.tolist()]))
        return session.rewards(twins)


class branches:  # noqa: N801  a context manager that reads as a noun
    """Forks of some rows of a session, for the time of a `with`: their numbers [N]."""

    def __init__(self, session: ModelSession | RewardSession, parents: Tensor) -> None:
        self._session = session
        self._parents = parents

    def __enter__(self) -> Tensor:
        self._own = torch.arange(self._session.num_rows)
        self._session.keep(torch.cat([self._own, self._parents]))
        return torch.arange(len(self._own), len(self._own) + len(self._parents))

    def __exit__(self, *_: object) -> None:
        self._session.keep(self._own)
