"""Sentences that requests bring: places for them among a decoder's guides, which are made before any request is.

A `SentencePlace` is a guide like `guides.prompt.PromptGuide`, but for its sentences, which it takes from the prompt of
the request that runs it (`bringing`). One place holds other sentences in each row, of one kind or of both: a row of two
sentences is two rows of the base, a row of one sentence is one, measured from the base's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from trimtab.core import Candidates, Chat, GuideSession, LanguageModel, ModelSession, Prompt, TokenIds
from trimtab.errors import BaseMismatchError, PromptError
from trimtab.guides.arm import scores_at
from trimtab.guides.prompt import ContrastSession, Pairs, PromptGuide
from trimtab.mixing.rules import NEVER
from trimtab.prompts import is_chat


def place_name(number: int) -> str:
    """The name of the place of this number, from 1: no guide that a person names can have it."""
    return f"sentence:{number}"


def with_names(text: str, names: Mapping[str, str]) -> str:
    """A text in which places are called by these names."""
    return re.sub(r"\bsentence:\d+", lambda found: names.get(found[0], found[0]), text)


@runtime_checkable
class Bringing(Protocol):
    """A prompt that brings sentences, by the places that they take."""

    sentences: Mapping[str, PromptGuide]


class _Text(str):
    sentences: Mapping[str, PromptGuide]


class _Ids(tuple[int, ...]):
    sentences: Mapping[str, PromptGuide]


class _Messages(Chat):
    sentences: Mapping[str, PromptGuide]


def bringing(prompt: Prompt, sentences: Mapping[str, PromptGuide]) -> Prompt:
    """The same prompt, which brings these sentences for the places of these names."""
    if not sentences:
        return prompt
    brought: _Text | _Ids | _Messages
    if isinstance(prompt, str):
        brought = _Text(prompt)
    elif isinstance(prompt, Chat):
        brought = _Messages(prompt, prompt.options, required=prompt.required, opened=prompt.opened)
    elif is_chat(prompt):
        brought = _Messages(prompt)  # type: ignore[arg-type]
    else:
        brought = _Ids(prompt)  # type: ignore[arg-type]
    brought.sentences = dict(sentences)
    return brought


@dataclass(frozen=True)
class SentencePlace:
    """A guide whose sentences come with the request. Off unless a request gives it a weight."""

    name: str
    """What it is called among the decoder's guides, and in what a prompt brings."""
    model: LanguageModel | None = None

    weight = 0.0
    is_policy = True
    needs_hidden = False
    needs_context = False
    selection = None

    @property
    def max_length(self) -> int | None:
        return None if self.model is None else self.model.max_length

    def bind(self, base: LanguageModel) -> SentencePlace:
        return SentencePlace(self.name, base)

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        """Raises PromptError for a prompt that brings no sentence, OptionError for one that the model cannot read."""
        guide = prompt.sentences.get(self.name) if isinstance(prompt, Bringing) else None
        if guide is None:
            raise PromptError(f"The request runs {self.name} and brings no sentence for it.")
        model = self._bound()
        ids = guide.bind(model).prompt_ids(prompt, base_ids)
        return ids if guide.away is not None else Pairs(model).alone(ids)

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        model = self._bound()
        towards = model.open(beside)
        return BroughtSession(towards, model.open(towards if beside is None else beside), Pairs(model))

    def _bound(self) -> LanguageModel:
        if self.model is None:
            raise BaseMismatchError("A sentence is read by the model that it steers. Call guide.bind(model) first.")
        return self.model


class BroughtSession(ContrastSession):
    """The growing sequences of sentences of either kind; only rows of two sentences have a second row."""

    reads_drafts = False

    def __init__(self, towards: ModelSession, away: ModelSession, pairs: Pairs) -> None:
        super().__init__(towards, away, pairs)
        self._second: list[int | None] = []  # row -> its row in the second session

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        split = [self._pairs.apart(prompt) for prompt in prompts]
        alone = [self._pairs.is_alone(prompt[0]) for prompt in prompts]
        seconds = [away for (_, away), single in zip(split, alone, strict=True) if not single]
        places = iter(range(self._reference.num_rows, self._reference.num_rows + len(seconds)))
        self._session.admit([towards for towards, _ in split])
        self._reference.admit(seconds)
        self._second += [None if single else next(places) for single in alone]

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        firsts, seconds = [], []
        for row, token_id in zip(rows.tolist(), token_ids.tolist(), strict=True):
            towards, away = self._pairs.apart([token_id])
            firsts += [(row, one) for one in towards]
            seconds += [(second, one) for one in away if (second := self._second[row]) is not None]
        for session, grown in ((self._session, firsts), (self._reference, seconds)):
            if grown:
                session.advance(*torch.tensor(grown, dtype=torch.int64).unbind(1))

    def keep(self, rows: Tensor) -> None:
        kept = [self._second[row] for row in rows.tolist()]
        places = iter(range(len(kept)))
        self._session.keep(rows)
        self._reference.keep(torch.tensor([one for one in kept if one is not None], dtype=torch.int64))
        self._second = [None if one is None else next(places) for one in kept]

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] log π(y | s₊, x) less log π(y | s₋, x), or less the base's own where a row has one sentence."""
        scores = scores_at(self._session.logprobs(), candidates)
        reference = candidates.logprobs.to(scores, copy=True)
        pairs = [row for row, second in enumerate(self._second) if second is not None]
        if pairs:
            some = torch.tensor(pairs, device=scores.device)
            order = torch.tensor([second for second in self._second if second is not None])
            reference[some] = scores_at(self._reference.logprobs(order), candidates.select(some)).to(reference)
        two = torch.zeros(len(scores), 1, dtype=torch.bool, device=scores.device)
        two[pairs] = True
        forbidden = torch.isneginf(reference)
        return (
            (scores - reference)
            .masked_fill(forbidden & ~two, 0.0)  # the base forbids it at any score
            .masked_fill((forbidden | torch.isneginf(scores)) & two, NEVER)
        )
