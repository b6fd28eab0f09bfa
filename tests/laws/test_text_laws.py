"""The law of tokenizers, for every kind of them; and what breaks it is found, as neighbours' code broke it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.tiny_tokenizers import KINDS, made
from trimtab.errors import OptionError
from trimtab.models.hf import HFTokenizer
from trimtab.models.tabular import TabularModel
from trimtab.models.tokenizing import decoders
from trimtab.models.tokenizing.spelling import ByteSpelling, PieceSpelling, Spelling
from trimtab.testing import LawViolation, check_tokenizer


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_tokenizer(name: str) -> None:
    check_tokenizer(HFTokenizer(made(name)), num_answers=100)


def test_a_tabular_models_tokenizer() -> None:
    check_tokenizer(TabularModel.random(8, seed=0).tokenizer, num_answers=30)


class EachAlone(HFTokenizer):
    """Every token is decoded without its neighbours."""

    def spelling(self, prompt_ids: Sequence[int]) -> Spelling:
        return ByteSpelling(lambda token_id: self.decode([token_id]).encode(), ())


class ForgetsThePrompt(HFTokenizer):
    """An answer is decoded as if nothing stood before it: its first space is lost."""

    def spelling(self, prompt_ids: Sequence[int]) -> Spelling:
        return super().spelling([])


class KeepsSpecialTokens(HFTokenizer):
    """A stream shows what the whole text leaves out."""

    def spelling(self, prompt_ids: Sequence[int]) -> Spelling:
        names = {token_id: token.encode() for token, token_id in self.tokens.items()}
        return ByteSpelling(lambda token_id: self.token_bytes(token_id) or names[token_id], prompt_ids)


class CharacterByCharacter(HFTokenizer):
    """A byte counts as text as soon as it makes a character, though the bytes after it may spoil the whole run."""

    def spelling(self, prompt_ids: Sequence[int]) -> Spelling:
        return ByteSpelling(self.token_bytes, prompt_ids)


class HasNoBytes(HFTokenizer):
    """Tokens that stand for bytes are read as text."""

    def spelling(self, prompt_ids: Sequence[int]) -> Spelling:
        known = self._decoding
        return PieceSpelling(known._text, known._token, lambda token: None, prompt_ids)


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (EachAlone, "byte-level"),
        (EachAlone, "metaspace"),
        (ForgetsThePrompt, "llama"),
        (ForgetsThePrompt, "wordpiece"),
        (ForgetsThePrompt, "byte-level"),
        (KeepsSpecialTokens, "byte-level"),
        (CharacterByCharacter, "llama"),
        (HasNoBytes, "byte fallback"),
    ],
)
def test_what_breaks_the_law_is_found(broken: type[HFTokenizer], name: str) -> None:
    with pytest.raises(LawViolation, match="what its tokens add to the decoded prompt"):
        check_tokenizer(broken(made(name)))


@pytest.mark.parametrize("name", ["regular expressions", "words' ends within"])
def test_a_decoder_taken_for_a_plainer_one_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_is_local_in_text", lambda stage: True)
    monkeypatch.setattr(decoders, "_ends_words", lambda tokens, suffix: True)
    monkeypatch.setattr(decoders.Decoding, "_agrees", lambda self, kind: True)
    with pytest.raises(LawViolation):
        check_tokenizer(HFTokenizer(made(name)), num_answers=1000)


def test_nothing_to_check_is_refused() -> None:
    with pytest.raises(OptionError, match="num_answers is 0"):
        check_tokenizer(HFTokenizer(made("llama")), num_answers=0)
