"""The checkers as a user meets them; that each rejects what breaks its law is shown in tests/laws/test_broken.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from trimtab.core import Candidates, LanguageModel, ModelSession, Prompt, TokenIds
from trimtab.errors import OptionError, PromptError
from trimtab.mixing.rules import Tilt
from trimtab.models.tabular import TabularModel, TabularSession
from trimtab.testing import LawViolation, check_guide, check_model, check_rule

MODEL = TabularModel.random(6, seed=0)


class Blurred(TabularModel):
    """A model whose first row is off by a fixed error as soon as it has company."""

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        return BlurredSession(self)


class BlurredSession(TabularSession):
    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        error = torch.zeros(self.num_rows, 1)
        error[0] = 0.125 if self.num_rows > 1 else 0.0
        whole = super().logprobs() + error
        return whole if rows is None else whole[rows]


def blurred() -> Blurred:
    return Blurred(MODEL.next_logprobs, 6)


def test_a_violation_names_the_law_and_the_numbers() -> None:
    with pytest.raises(LawViolation) as caught:
        check_model(blurred())
    assert isinstance(caught.value, AssertionError)
    assert caught.value.law == "numbers are well formed"
    assert str(caught.value) == f"{caught.value.law}: {caught.value.evidence}"
    assert caught.value.evidence == "ln of the total probability: at (0,) 0.125 instead of 0 (tolerance 0.0001)"


def test_the_tolerance_is_the_callers() -> None:
    check_model(blurred(), tolerance=0.2)
    with pytest.raises(LawViolation):
        check_model(MODEL, tolerance=-1.0)


@dataclass(frozen=True)
class Head:
    """A guide that reads the base's states: before and after each candidate."""

    needs_hidden: bool
    needs_context: bool
    weight: float = 1.0
    max_length: int | None = None
    selection: None = None

    def bind(self, base: LanguageModel) -> Head:
        return self

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return base_ids

    def open(self, beside: ModelSession | None = None) -> HeadSession:
        return HeadSession(self)


class HeadSession:
    def __init__(self, guide: Head) -> None:
        self._guide = guide
        self.num_rows = 0

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self.num_rows += len(prompts)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        pass

    def keep(self, rows: Tensor) -> None:
        self.num_rows = len(rows)

    def score(self, candidates: Candidates) -> Tensor:
        assert (candidates.hidden is not None) == self._guide.needs_hidden
        assert (candidates.context is not None) == self._guide.needs_context
        scores = torch.zeros_like(candidates.logprobs)
        if candidates.hidden is not None:
            assert candidates.hidden.shape == (*candidates.token_ids.shape, MODEL.hidden_size)
            assert not candidates.complete, "states of the whole vocabulary are more than anybody asked for"
            scores = scores + candidates.hidden.sum(-1)
        if candidates.context is not None:
            assert candidates.context.shape == (self.num_rows, MODEL.hidden_size)
            scores = scores + candidates.context.sum(-1, keepdim=True)
        if not candidates.complete:
            assert (candidates.logprobs.diff(dim=1) <= 0).all(), "candidates come best first"
        return scores


@pytest.mark.parametrize("needs_hidden", [False, True])
@pytest.mark.parametrize("needs_context", [False, True])
def test_a_guide_is_given_the_states_it_needs(needs_hidden: bool, needs_context: bool) -> None:
    check_guide(Head(needs_hidden, needs_context), MODEL)


def test_a_guide_for_another_vocabulary_is_not_even_checked() -> None:
    from trimtab.errors import VocabularyMismatchError
    from trimtab.guides.arm import ARM

    with pytest.raises(VocabularyMismatchError):
        check_guide(ARM(TabularModel.random(7, seed=0)), MODEL)


def test_prompts_may_be_text_and_must_be_two() -> None:
    check_model(MODEL, ["abc", "e"])
    with pytest.raises(OptionError, match="1 prompts; give at least 2"):
        check_model(MODEL, ["abc"])


def test_a_short_model_is_checked_within_its_length() -> None:
    check_model(TabularModel.random(6, seed=0, max_length=6))
    with pytest.raises(PromptError, match="the model holds 6"):
        check_model(TabularModel.random(6, seed=0, max_length=6), ["abcde", "a"])


def test_a_rule_needs_enough_candidates() -> None:
    check_rule(Tilt(), num_candidates=5)
    with pytest.raises(OptionError, match="at least 5"):
        check_rule(Tilt(), num_candidates=4)
