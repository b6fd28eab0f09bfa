"""A guide whose model has a vocabulary of its own: it is fed the base's ids, whatever it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_module, tiny_tokenizer
from trimtab.core import Candidates, LanguageModel, ModelSession, Prompt, TokenIds
from trimtab.decoding.decoder import Decoder
from trimtab.guides.arm import ARM
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.testing import LawViolation, check_guide, laws

BASE = TabularModel.random(6, seed=0)
"""Tokens <0>, a, b, c, d, e."""

START, PAIR = 4, 5
TOKENIZER = tiny_tokenizer()
OWN = TabularModel.random(7, seed=1, eos_ids=(START, PAIR))
"""Letters 0 to 3 are a, b, c, d; what begins a text; the two letters "ab" as one token; 6 is e."""


def own_ids(text: str) -> list[int]:
    """A text in the guide's vocabulary, its pair merged from the left."""
    assert OWN.tokenizer is not None
    first, *rest = text.split("ab")
    ids = OWN.tokenizer.encode(first)
    for part in rest:
        ids += [PAIR, *OWN.tokenizer.encode(part)]
    return ids


@dataclass(frozen=True)
class Speller:
    """Scores a token of the base by how probable the guide's model finds its text after the text so far."""

    session: type[SpellerSession]
    weight: float = 1.0
    max_length: int | None = None
    asked: list[Prompt] = field(default_factory=list)

    needs_hidden = False
    needs_context = False
    selection = None

    def bind(self, base: LanguageModel) -> Speller:
        return self

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        self.asked.append(prompt)
        return base_ids

    def open(self, beside: ModelSession | None = None) -> SpellerSession:
        return self.session(self.max_length)


class SpellerSession:
    """Remembers texts, and spells each anew in the guide's vocabulary whenever it is asked."""

    def __init__(self, max_length: int | None) -> None:
        self._max_length = max_length
        self._rows: list[list[int]] = []

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self._rows += [self._begun(prompt) for prompt in prompts]

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        for row, token_id in zip(rows.tolist(), token_ids.tolist(), strict=True):
            self._rows[row] = self._grown(self._rows[row], token_id)

    def keep(self, rows: Tensor) -> None:
        self._rows = [list(self._rows[row]) for row in rows.tolist()]

    def score(self, candidates: Candidates) -> Tensor:
        found = [
            [self._after(row, token_id) for token_id in ids]
            for row, ids in zip(self._rows, candidates.token_ids.tolist(), strict=True)
        ]
        return torch.tensor(found, dtype=torch.float32).view(candidates.token_ids.shape)

    def _begun(self, prompt: TokenIds) -> list[int]:
        return list(prompt)

    def _grown(self, row: list[int], token_id: int) -> list[int]:
        if self._max_length is not None and len(row) >= self._max_length:
            raise ValueError(f"The guide holds {self._max_length} tokens.")
        return [*row, token_id]

    def _spelled(self, row: list[int]) -> list[int]:
        """A row as the guide's model reads it."""
        assert BASE.tokenizer is not None
        return [START, *own_ids(BASE.tokenizer.decode(row))]

    def _after(self, row: list[int], token_id: int) -> float:
        """How much less probable a text is with a token of the base behind it."""
        return _logprob(tuple(self._spelled(self._grown(row, token_id)))) - _logprob(tuple(self._spelled(row)))


class SpelledInPieces(SpellerSession):
    """A prompt is spelled whole and each further token by itself, so no pair is made across the two."""

    def _begun(self, prompt: TokenIds) -> list[int]:
        return SpellerSession._spelled(self, list(prompt))

    def _grown(self, row: list[int], token_id: int) -> list[int]:
        assert BASE.tokenizer is not None
        return [*row, *own_ids(BASE.tokenizer.decode([token_id]))]

    def _spelled(self, row: list[int]) -> list[int]:
        return row


class FedAsTheyAre(SpelledInPieces):
    """The base's ids are taken for the guide's, once the prompt is over."""

    def _grown(self, row: list[int], token_id: int) -> list[int]:
        return [*row, token_id]


@cache
def _logprob(ids: tuple[int, ...]) -> float:
    steps = [OWN.next_logprobs(ids[:at])[ids[at]] for at in range(1, len(ids))]
    return float(sum(steps, torch.zeros(())))


def test_a_guide_that_spells_anew_keeps_every_law() -> None:
    check_guide(Speller(SpellerSession), BASE, ["ab", "dabe", "c"])
    check_guide(Speller(SpellerSession), BASE)


@pytest.mark.parametrize("session", [SpelledInPieces, FedAsTheyAre])
def test_one_that_spells_prompts_and_answers_differently_is_rejected(session: type[SpellerSession]) -> None:
    with pytest.raises(LawViolation) as caught:
        check_guide(Speller(session), BASE, ["aa", "dabe", "c"])
    assert caught.value.law == laws.ADMIT


def test_a_guide_is_shown_the_prompt_as_it_was_given() -> None:
    """Not its ids in the base's vocabulary, which a template or a tokenizer of its own would have to take apart."""
    guide, chat = Speller(SpellerSession), [{"role": "user", "content": "dab"}]
    check_guide(guide, BASE, ["ab", chat, [3, 1]])
    assert guide.asked[:3] == ["ab", chat, [3, 1]]


def test_what_a_guide_holds_is_not_exceeded() -> None:
    check_guide(Speller(SpellerSession, max_length=7), BASE)


@pytest.mark.parametrize(("session", "agree"), [(SpellerSession, True), (SpelledInPieces, False)])
def test_what_the_law_is_good_for(session: type[SpellerSession], agree: bool) -> None:
    """A prompt that is fed in pieces is admitted in part, and the rest is advanced."""
    answers = []
    for chunk in (None, 1):
        decoder = Decoder(BASE, {"own": Speller(session, weight=3.0)}, prefill_chunk=chunk)
        prompts = ["ab", "cab", "dabe", "abab"]
        answers.append([answer.token_ids for answer in decoder.generate(prompts, max_new_tokens=8, seed=0)])
    assert (answers[0] == answers[1]) == agree


@pytest.mark.parametrize("sizes", [(61, 64), (64, 61)])
def test_logits_may_be_padded_differently(sizes: tuple[int, int]) -> None:
    """A guide of fewer rows than the base is never fed what it cannot read; one of more is cut."""
    base, own = (HFModel(tiny_module(seed=seed, vocab_size=size), TOKENIZER) for seed, size in enumerate(sizes))
    check_guide(ARM(own), base, num_candidates=60, num_steps=2)
