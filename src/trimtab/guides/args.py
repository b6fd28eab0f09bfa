"""A trajectory reward model that scores every candidate after the answer so far.

ARGS (Khanov et al., ICLR 2024, arXiv 2402.01694, equation 2): score(v) = logit_base(v) + w · r(x, y_<t, v) over the
base's top-k; the best one is the token (greedy, the default), or one is drawn by softmax(score / τ) (stochastic; theirs
has τ = 0.7). k = 10 and w = 1 to 1.5 in the paper.

Where it differs from the authors' code: rows are batched, each with its own cache, and all K candidates of all rows are
seen in one forward pass (theirs keeps a cache too, for one text at a time, copied to each candidate); a reward model
that is an adapter of the base shares that pass with the base; the score starts from log-probabilities, which differ
from logits by a constant. An answer ends at any of the model's end-of-sequence tokens, where theirs never stops at the
end of a turn and always makes the number of tokens asked for. Every reward is read after the candidate, where theirs
reads the first step's inside a prompt that holds the pad id.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from trimtab.core import (
    Candidates,
    GuideSession,
    LanguageModel,
    ModelSession,
    Prompt,
    Selection,
    Session,
    TokenIds,
    Tokenizer,
)
from trimtab.errors import BaseMismatchError
from trimtab.mixing.rules import WeighedCandidates
from trimtab.prompts import check_same_vocabulary, guide_prompt_ids, num_readable
from trimtab.sessions import SessionView

TOP_K = 10
"""The paper's number of candidates."""


class RewardSession(Session, Protocol):
    """Growing sequences, and what a reward model says of them."""

    def rewards(self, rows: Tensor | None = None) -> Tensor:
        """[N] float32 rewards of what is there, of some rows [N] or of all."""

    def peek(self, token_ids: Tensor, rows: Tensor | None = None, base_rows: Tensor | None = None) -> Tensor:
        """[N, K] candidates of some rows -> [N, K] rewards after each; changes nothing observable.

        `base_rows` [N] are the base's own rows, which may look at the same candidates in the same pass.
        """


class SequenceRewards(Protocol):
    """A reward model of token sequences; `models.value.TokenRewards` is one."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_length(self) -> int | None: ...
    def open(self, beside: ModelSession | None = None) -> RewardSession: ...


@runtime_checkable
class RewardAdapter(Protocol):
    """What makes a reward model of a base; `models.value.AdapterRewards` is one."""

    def on(self, base: LanguageModel) -> SequenceRewards:
        """The reward model, sharing the base's weights. Raises BaseMismatchError."""


def args_selection(*, temperature: float = 0.0, top_k: int = TOP_K) -> Selection:
    """The paper's candidates; temperature 0 is ARGS-greedy, above 0 ARGS-stochastic."""
    return Selection(WeighedCandidates(), temperature=temperature, top_k=top_k, top_p=1.0, looks=())


@dataclass(frozen=True)
class TrajectoryGuide:
    """A guide that selects: among the base's `top_k`, by log-probability plus weight times reward.

    `weight` multiplies the reward; any finite number, negative for a cost model. The reward model's vocabulary must be
    the base's, token by token.
    """

    rewards: SequenceRewards | RewardAdapter
    weight: float = 1.0
    selection: Selection = args_selection()  # noqa: RUF009  frozen

    needs_hidden = False
    needs_context = False

    @property
    def max_length(self) -> int | None:
        return getattr(self.rewards, "max_length", None)

    @property
    def num_readable(self) -> int | None:
        """How many ids the reward model can be fed, from 0 on; None while it is an adapter without a base."""
        return None if isinstance(self.rewards, RewardAdapter) else num_readable(self.rewards)

    def bind(self, base: LanguageModel) -> TrajectoryGuide:
        return replace(self, rewards=bound_rewards(self.rewards, base))

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return base_ids if isinstance(self.rewards, RewardAdapter) else guide_prompt_ids(self.rewards, prompt, base_ids)

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        return TrajectorySession(opened(self.rewards, beside))

    def at(self, *, temperature: float | None = None, top_k: int | None = None) -> TrajectoryGuide:
        """The same guide with another temperature (0: greedy) or number of candidates."""
        selection = self.selection
        if temperature is not None:
            selection = replace(selection, temperature=temperature)
        if top_k is not None:
            selection = replace(selection, top_k=top_k)
        return replace(self, selection=selection)


class TrajectorySession(SessionView[RewardSession]):
    """The growing sequences of a trajectory guide."""

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] rewards of the answer so far with each candidate."""
        return self._session.peek(candidates.token_ids, candidates.rows, candidates.base_rows)


def bound_rewards(rewards: SequenceRewards | RewardAdapter, base: LanguageModel) -> SequenceRewards:
    """A reward model that reads the base's tokens. Raises BaseMismatchError or VocabularyMismatchError."""
    if isinstance(rewards, RewardAdapter):
        return rewards.on(base)
    check_same_vocabulary(base, rewards)
    return rewards


def opened(rewards: SequenceRewards | RewardAdapter, beside: ModelSession | None) -> RewardSession:
    """A session of a reward model that is bound."""
    if isinstance(rewards, RewardAdapter):
        raise BaseMismatchError("This reward model is an adapter without a base. Call guide.bind(model) first.")
    return rewards.open(beside)
