"""An autoregressive reward model: a language model whose log-probabilities are the scores.

GenARM (Xu et al., ICLR 2025, arXiv 2410.08193), with w = 1/β:
π(y_t | x, y_<t) ∝ π_base(y_t | x, y_<t) · π_r(y_t | x, y_<t)^w. Several guides multiply.

The same object with other weights is proxy tuning (expert +w, anti-expert −w; arXiv 2401.08565), contrastive decoding
(the amateur at a negative weight with a plausibility mask; arXiv 2210.15097), decoding-time realignment (aligned model
+λ, reference −λ; arXiv 2402.02992) and classifier-free guidance (the base itself, reading another prompt;
arXiv 2306.17806). `examples/` shows each.

Where it differs from the paper's released code: weights are never renormalised, so a weight does not change the
temperature; the mix is float32; and the vocabulary is compared by content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from trimtab.core import Candidates, GuideSession, LanguageModel, ModelSession, Prompt, TokenIds
from trimtab.errors import BaseMismatchError
from trimtab.prompts import check_same_vocabulary, encode_prompt, guide_prompt_ids
from trimtab.sessions import SessionView


@dataclass(frozen=True)
class ARM:
    """A guide that scores every token of the vocabulary with a language model's log-probability.

    `prompt` is what the guide reads instead of the request's prompt: a prompt (the same for every request), or a
    function from the request's prompt to the guide's. Left out, the guide reads the request's own prompt; chat
    messages go through the guide's own template where it has one.
    """

    model: LanguageModel
    weight: float = 1.0
    prompt: Prompt | Callable[[Prompt], Prompt] | None = None

    needs_hidden = False
    needs_context = False
    selection = None

    @property
    def max_length(self) -> int | None:
        return self.model.max_length

    def bind(self, base: LanguageModel) -> ARM:
        check_same_vocabulary(base, self.model)
        return self

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        own = self.prompt(prompt) if callable(self.prompt) else self.prompt
        if own is not None:
            return encode_prompt(self.model, own)
        return guide_prompt_ids(self.model, prompt, base_ids)

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        return ARMSession(self.model.open(beside))


class ARMSession(SessionView[ModelSession]):
    """The growing sequences of an ARM: a model's session, read as scores."""

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] log π_r; −inf for ids beyond the guide's own logits (padding of the base's)."""
        table = self._session.logprobs()
        if candidates.complete:
            return fit_width(table, candidates.logprobs.shape[1]).to(candidates.logprobs.device)
        ids = candidates.token_ids.to(table.device)
        scores = table.gather(1, ids.clamp(max=table.shape[1] - 1))
        return scores.masked_fill(ids >= table.shape[1], -torch.inf).to(candidates.logprobs.device)


class Adapter(Protocol):
    """Weights that turn a base into another language model."""

    def on(self, base: LanguageModel) -> LanguageModel:
        """The adapted model, sharing the base's weights. Raises BaseMismatchError."""

    def save(self, directory: Path) -> None: ...


@dataclass(frozen=True)
class AdapterARM:
    """An ARM that is an adapter of the model it will steer; `bind` makes it an ARM that shares the base's weights."""

    adapter: Adapter
    weight: float = 1.0
    prompt: Prompt | Callable[[Prompt], Prompt] | None = None

    needs_hidden = False
    needs_context = False
    selection = None
    max_length = None

    def bind(self, base: LanguageModel) -> ARM:
        return ARM(self.adapter.on(base), weight=self.weight, prompt=self.prompt)

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return base_ids

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        raise BaseMismatchError("This guide is an adapter without a base. Call guide.bind(model) first.")

    def save_files(self, directory: Path) -> None:
        """Write the adapter's files into an existing directory (see `loading.save_guide`)."""
        self.adapter.save(directory)

    def at(self, weight: float) -> AdapterARM:
        """The same guide at another default strength."""
        return dataclasses.replace(self, weight=weight)


def fit_width(table: Tensor, width: int) -> Tensor:
    """A [B, V'] table cut or padded with −inf to [B, width]; vocabularies that were checked differ in padding only."""
    if table.shape[1] >= width:
        return table[:, :width]
    return torch.nn.functional.pad(table, (0, width - table.shape[1]), value=-torch.inf)
