"""A trajectory reward model read token by token: the reward of a prefix, or of a candidate after it, from a cache.

What it does not know: a Bradley-Terry model is trained on whole answers; what it says of half of one is extrapolation,
which ARGS and its successors live on (arXiv 2402.01694, section 3). The head reads the last token's state.

Two forms: a model of its own, and an adapter with a head, which runs as rows of the base's own forward pass.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from trimtab.core import LanguageModel, ModelSession
from trimtab.errors import BaseMismatchError, CompatibilityError
from trimtab.models.adapters.lora import LoRA
from trimtab.models.adapters.row_lora import RowLoRA
from trimtab.models.forward.grouping import RowAdapter
from trimtab.models.forward.trunk import TrunkSession
from trimtab.models.hf import HFModel, HFTokenizer
from trimtab.models.networks.backbone import Backbone
from trimtab.models.networks.probing import Numbers, probe
from trimtab.models.rewards.adapter import read_reward_adapter
from trimtab.models.rewards.whole import RewardModel
from trimtab.models.trained_on import UNKNOWN, TrainedOn
from trimtab.sessions import SessionView


class TokenRewards:
    """Rewards of token sequences: a backbone, maybe with an adapter on its rows, and a linear head [D] on the state."""

    def __init__(
        self,
        backbone: Backbone,
        head: Tensor,
        *,
        tokenizer: HFTokenizer | None,
        adapter: RowAdapter | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = backbone.vocab_size
        self._backbone = backbone
        self._adapter = adapter
        self._head = head.to(backbone.device, torch.float32)

    @property
    def max_length(self) -> int | None:
        return self._backbone.max_length

    def open(self, beside: ModelSession | None = None) -> TokenRewardSession:
        """A new, empty session, which shares the forward passes of `beside` where the weights are the same."""
        return TokenRewardSession(self._backbone.open_rows(beside, self._adapter, tables=False), self._head, beside)


class TokenRewardSession(SessionView[TrunkSession]):
    """The growing sequences of a reward model."""

    def __init__(self, session: TrunkSession, head: Tensor, beside: ModelSession | None) -> None:
        super().__init__(session)
        self._head = head
        shares = isinstance(beside, TrunkSession) and beside.trunk is session.trunk
        self._beside = beside if shares and isinstance(beside, TrunkSession) else None

    def rewards(self, rows: Tensor | None = None) -> Tensor:
        """[N] float32: the rewards of what is there, of some rows or of all."""
        return self._read(self._session.context(rows))

    def peek(self, token_ids: Tensor, rows: Tensor | None = None, base_rows: Tensor | None = None) -> Tensor:
        """[N, K] candidates of some rows -> [N, K] float32 rewards after each; changes nothing observable.

        With `base_rows`, the base's rows [N] look at the same candidates in the same pass where the two share one: the
        chosen one then costs the base no pass of its own.
        """
        if base_rows is None or self._beside is None:
            return self._read(self._session.peek(token_ids, rows))
        return self._read(self._session.peek_beside(self._beside, token_ids, rows, base_rows))

    def _read(self, states: Tensor) -> Tensor:
        return states.to(self._head) @ self._head


@dataclasses.dataclass(frozen=True)
class AdapterRewards:
    """An adapter and a head [D] that make a reward model of the base they were trained on."""

    adapter: LoRA
    head: Tensor

    def on(self, base: LanguageModel) -> TokenRewards:
        """The reward model that shares the base's weights. Raises BaseMismatchError or VocabularyMismatchError."""
        if not isinstance(base, HFModel):
            raise BaseMismatchError(
                f"This reward model is an adapter of a transformers model; the base here is a {type(base).__name__}."
            )
        self.adapter.check(base)
        rows = RowLoRA(base, self.adapter.pairs)
        return TokenRewards(base, self.head, tokenizer=base.tokenizer, adapter=rows)


class _RewardBackbone(Backbone):
    """The decoder stack of a sequence-classification model."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__(model.module)
        self.name = model.name
        probe(self, Numbers(self._own_states, lambda states: states))

    def _own_states(self, token_ids: Tensor) -> Tensor:
        """[B, T] ids -> [B, T, D], by the model's own forward pass."""
        output = self.module.base_model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False)
        states: Tensor = output.last_hidden_state
        return states


def token_rewards(model: RewardModel) -> TokenRewards:
    """A whole reward model, to be read token by token.

    Raises CompatibilityError for one without a linear `score` on its last token, such as an encoder.
    """
    head = getattr(getattr(model.module, "score", None), "weight", None)
    if head is None or head.shape[0] != 1 or getattr(model.module.score, "bias", None) is not None:
        raise CompatibilityError(
            f"{model.name} is a {type(model.module).__name__}, which cannot be read token by token. Accepted: "
            "decoder-style sequence-classification models with a linear `score` on the last token."
        )
    return TokenRewards(_RewardBackbone(model), head[0], tokenizer=HFTokenizer(model.tokenizer))


def load_adapter_rewards(directory: Path, trained_on: TrainedOn = UNKNOWN) -> AdapterRewards:
    """The adapter and the head that `trimtab train reward` wrote. Raises CheckpointError."""
    adapter, head = read_reward_adapter(directory, trained_on)
    return AdapterRewards(adapter, head[0])
