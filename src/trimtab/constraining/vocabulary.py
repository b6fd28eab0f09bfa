"""The base's vocabulary as llguidance reads it: what each token adds to a text, in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llguidance import LLTokenizer, TokenizerWrapper

from trimtab.core import KnownModel
from trimtab.models.tokenizing.spelling import bytes_of


@dataclass(slots=True)
class _Spelled:
    """The attributes that llguidance asks for."""

    tokens: Sequence[bytes]
    eos_token_id: int
    bos_token_id: int | None = None
    special_token_ids: Sequence[int] = field(default_factory=list)

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text, which are asked for where texts are forced; nothing is (see `grammars.lark_of`)."""
        return []


def vocabulary_of(model: KnownModel) -> LLTokenizer:
    """Each of the model's tokens as what it adds in the middle of a text; those that add nothing are never allowed but
    for the ends of a sequence. Takes a second for a large vocabulary.
    """
    assert model.tokenizer is not None, "checked before"
    tokens = [b""] * model.vocab_size
    for token_id in model.tokenizer.tokens.values():
        if token_id < len(tokens) and token_id not in model.eos_ids:
            tokens[token_id] = bytes_of(model.tokenizer, token_id)
    ends = sorted(token_id for token_id in model.eos_ids if token_id < len(tokens))
    return LLTokenizer(TokenizerWrapper(_Spelled(tokens, ends[0])), n_vocab=len(tokens), eos_token=ends)
