"""A language model as a guide: its log-probabilities are the scores, whole or less those of what it was trained from.

As a *product*, an autoregressive reward model steers as in GenARM (Xu et al., ICLR 2025, arXiv 2410.08193), with w =
1/β: π(y_t | x, y_<t) ∝ π_base(y_t | x, y_<t) · π_r(y_t | x, y_<t)^w. Several guides multiply.

As a *shift*, only what training changed is weighed: π ∝ π_base · (π_r / π_ref)^w, where π_ref is the model that π_r
was trained from. Where that is the steered base itself, the mix is π_base^(1−w) · π_r^w: the base at 0, the tuned
model at 1, decoding-time realignment between and beyond (DeRa, Liu et al., arXiv 2402.02992, equation 10), and its KL
to the base is exact in the trace. Where it is a smaller model, it is proxy tuning (Liu et al., arXiv 2401.08565). A
negative weight steers the other way; on a product it would cancel the base that is inside the guide (`forms`).

The same object with other weights is contrastive decoding (the amateur at a negative weight with a plausibility mask;
arXiv 2210.15097) and classifier-free guidance (the base itself, reading another prompt; arXiv 2306.17806). `examples/`
shows each.

Where it differs from the papers' released code: weights are never renormalised, so a weight does not change the
temperature; the mix is float32; the vocabulary is compared by content; a guide that is an adapter of the base is a
row of the base's own forward pass, and so is its reference.
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
from trimtab.drafting import drafting_model, logprobs_for
from trimtab.errors import BaseMismatchError, OptionError, unknown_name
from trimtab.mixing.forms import FORMS, PRODUCT, SHIFT
from trimtab.mixing.rules import NEVER
from trimtab.prompts import (
    check_same_vocabulary,
    encode_prompt,
    guide_prompt_ids,
    is_chat,
    num_readable,
    options_of,
    with_options,
)
from trimtab.sessions import SessionGroup, SessionView


@dataclass(frozen=True)
class ARM:
    """A guide that scores every token of the vocabulary with a language model's log-probability.

    `prompt` is what the guide reads instead of the request's prompt: a prompt (the same for every request), or a
    function from the request's prompt to the guide's. Left out, the guide reads the request's own prompt; chat
    messages go through the guide's own template where it has one.

    `form` says what of it is weighed: `product`, its log-probabilities; `shift`, these less those of `reference`, the
    model that it was trained from, which reads what the guide reads. Without a reference, the steered base is it.
    Raises OptionError for an unknown form, and for a reference of a product.

    >>> from trimtab import ARM, Decoder, TabularModel
    >>> base, tuned = TabularModel.random(9, seed=0), TabularModel.random(9, seed=1)
    >>> decoder = Decoder(base, {"tuned": ARM(tuned, form="shift")})
    >>> [answer] = decoder.generate("ab", weights={"tuned": 1.0}, temperature=0, max_new_tokens=3, ignore_eos=True)
    >>> [alone] = Decoder(tuned).generate("ab", temperature=0, max_new_tokens=3, ignore_eos=True)
    >>> answer.token_ids == alone.token_ids  # a shift at weight 1 is the tuned model itself
    True
    """

    model: LanguageModel
    weight: float = 1.0
    prompt: Prompt | Callable[[Prompt], Prompt] | None = None
    form: str = PRODUCT
    reference: LanguageModel | None = None

    is_policy = True
    needs_hidden = False
    needs_context = False
    selection = None

    def __post_init__(self) -> None:
        check_form(self.form)
        if self.reference is not None and self.form != SHIFT:
            raise OptionError(f"A guide of the form {self.form} has no reference; give the form {SHIFT} with one.")

    @property
    def max_length(self) -> int | None:
        limits = [model.max_length for model in (self.model, self.reference) if model is not None]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def num_readable(self) -> int:
        """How many ids it can be fed, from 0 on."""
        return min(num_readable(model) for model in (self.model, self.reference) if model is not None)

    def bind(self, base: LanguageModel) -> ARM:
        check_same_vocabulary(base, self.model)
        if self.reference is None:
            return self
        if self.reference is base and self.prompt is None:  # the base's own row says what the reference would
            return dataclasses.replace(self, reference=None)
        check_same_vocabulary(base, self.reference)
        return self

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        guide_prompt = self.prompt(prompt) if callable(self.prompt) else self.prompt
        if guide_prompt is not None:
            template_options = options_of(prompt) if is_chat(guide_prompt) else {}
            return encode_prompt(self.model, with_options(guide_prompt, template_options, required=False))
        return guide_prompt_ids(self.model, prompt, base_ids)

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        session = self.model.open(beside)
        if self.form == PRODUCT:
            return ARMSession(session)
        if self.reference is None:
            return ShiftSession(session)
        return ReferencedSession(session, self.reference.open(session if beside is None else beside))


class _Reading:
    """What the sessions of a guide that is a language model share: the guide's own policy."""

    _session: ModelSession

    def policy(self, candidates: Candidates) -> Tensor:
        """[B, K] log π_r; −inf for ids beyond the guide's own logits (padding of the base's)."""
        return scores_at(logprobs_for(self._session, candidates), candidates)


class ARMSession(_Reading, SessionView[ModelSession]):
    """The growing sequences of an ARM: a model's session, read as scores."""

    reads_drafts = True

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] log π_r."""
        return self.policy(candidates)

    def foreseen(self, rows: Tensor, drafted: Tensor, weights: Tensor) -> Tensor:
        """[N, V]: π_r^(1+w), as if the base were the guide (`drafting.Foreseeing`)."""
        return drafting_model(self._session).logprobs_after(rows, drafted) * (1 + weights[:, None])


class ShiftSession(_Reading, SessionView[ModelSession]):
    """The growing sequences of a shift from the steered base."""

    reads_drafts = True

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] log π_r − log π_base; 0 where the base forbids, which it does at any score."""
        scores = self.policy(candidates)
        forbidden = torch.isneginf(candidates.logprobs)
        return (scores - candidates.logprobs.to(scores)).masked_fill(forbidden, 0.0)

    def foreseen(self, rows: Tensor, drafted: Tensor, weights: Tensor) -> Tensor:
        """[N, V]: π_r, what is steered to at weight 1 (`drafting.Foreseeing`)."""
        return drafting_model(self._session).logprobs_after(rows, drafted)


class ReferencedSession(_Reading, SessionGroup):
    """The growing sequences of a shift from another model than the steered base."""

    reads_drafts = True

    def __init__(self, session: ModelSession, reference: ModelSession) -> None:
        super().__init__([session, reference])
        self._session = session
        self._reference = reference

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] log π_r − log π_ref; −inf where either has no logit or forbids."""
        scores = self.policy(candidates)
        reference = scores_at(logprobs_for(self._reference, candidates), candidates)
        unknown = torch.isneginf(scores) | torch.isneginf(reference)
        return (scores - reference).masked_fill(unknown, NEVER)

    def foreseen(self, rows: Tensor, drafted: Tensor, weights: Tensor) -> Tensor:
        """[N, V]: π_r, which is like the policy where the steered base is like π_ref (`drafting.Foreseeing`)."""
        return drafting_model(self._session).logprobs_after(rows, drafted)


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
    form: str = PRODUCT

    needs_hidden = False
    needs_context = False
    selection = None
    max_length = None

    def __post_init__(self) -> None:
        check_form(self.form)

    def bind(self, base: LanguageModel) -> ARM:
        return ARM(self.adapter.on(base), weight=self.weight, prompt=self.prompt, form=self.form)

    def on(self, base: LanguageModel) -> ARM:
        """The guide on its own base, to steer another model of the same vocabulary beside it.

        A shift is measured from `base`. Raises BaseMismatchError where the adapter is not of `base`.
        """
        arm = self.bind(base)
        return dataclasses.replace(arm, reference=base) if self.form == SHIFT else arm

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


def check_form(form: str) -> None:
    """Raise OptionError for an unknown form."""
    if form not in FORMS:
        raise unknown_name("form of a guide", form, FORMS)


def scores_at(table: Tensor, candidates: Candidates) -> Tensor:
    """A [B, V'] table at the candidates: [B, K], −inf for ids beyond the table, on the candidates' device."""
    if candidates.complete:
        return fit_width(table, candidates.logprobs.shape[1]).to(candidates.logprobs.device)
    ids = candidates.token_ids.to(table.device)
    scores = table.gather(1, ids.clamp(max=table.shape[1] - 1))
    return scores.masked_fill(ids >= table.shape[1], NEVER).to(candidates.logprobs.device)


def fit_width(table: Tensor, width: int) -> Tensor:
    """A [B, V'] table cut or padded with −inf to [B, width]; vocabularies that were checked differ in padding only."""
    if table.shape[1] >= width:
        return table[:, :width]
    return torch.nn.functional.pad(table, (0, width - table.shape[1]), value=-torch.inf)
