"""How a transformers tokenizer makes text of tokens, read off its decoder: where a token's text depends on what.

What it does not do: it never decodes in the library's stead. It says which of the decoder's stages reach beyond a token
(`spelling.py` says what follows from that), and knows nothing of a decoder with a stage or an order that is not here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import transformers

from trimtab.core import TokenIds
from trimtab.models.tokenizing.spelling import ANCHOR, ByteSpelling, PieceSpelling, Spelling, WholeSpelling

Stage = Mapping[str, Any]

_NUM_TRIED = 100
"""Tokens on which what is read off a decoder is tried."""
_BYTE = re.compile(r"<0x([+0-9A-Fa-f][0-9A-Fa-f])>")
_EACH_TOKEN = ("Replace", "Metaspace", "WordPiece", "ByteFallback", "Strip")
"""Stages that look at one token at a time, at whether it is the first, or at a run of bytes."""


class Decoding:
    """What a tokenizer's decoder does with tokens. `hf` is the transformers tokenizer."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._tokens: dict[int, str | None] = {}

    def spelling(self, prompt_ids: TokenIds) -> Spelling:
        """See `spelling.Spells`."""
        return self._spelling(self.kind, prompt_ids)

    def _spelling(self, kind: str, prompt_ids: TokenIds) -> Spelling:
        if kind == "bytes":
            return ByteSpelling(self._level_bytes, prompt_ids)
        if kind == "pieces":
            return PieceSpelling(self._text, self._token, self._byte, prompt_ids)
        return WholeSpelling(self.decode, prompt_ids)

    def decode(self, token_ids: TokenIds) -> str:
        """Ids to text, special tokens left out, spaces as the model wrote them."""
        text: str = self._hf.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """See `spelling.Spells`."""
        if self.kind == "whole":
            return self._after_text(token_id)
        if self.kind == "bytes":
            return self._level_bytes(token_id)
        token = self._token(token_id)
        if token is None:
            return b""
        byte = self._byte(token)
        if byte is not None:
            return bytes([byte])
        return self._text([ANCHOR, token])[len(self._text([ANCHOR])) :].encode()

    @cached_property
    def kind(self) -> str:
        """`bytes`, `pieces` or `whole`, as the classes in `models/tokenizing/spelling.py`."""
        found = self._kind_by_stages()
        return found if found == "whole" or self._agrees(found) else "whole"

    def _agrees(self, kind: str) -> bool:
        """Whether tokens from all over the vocabulary read as the tokenizer itself reads them."""
        known = sorted(self._hf.get_vocab().values())
        ids, spelling = known[:: max(1, len(known) // _NUM_TRIED)], self._spelling(kind, ())
        added = [piece for token_id in ids for piece in spelling.push(token_id)]
        return b"".join([*added, *spelling.rest()]).decode(errors="replace") == self.decode(ids)

    def _kind_by_stages(self) -> str:
        """What the decoder's stages say."""
        backend = self._backend
        if backend is None:
            return "whole"
        stages = _flat(json.loads(backend.decoder.__getstate__())) if backend.decoder is not None else []
        names = [stage["type"] for stage in stages]
        if names == ["ByteLevel"]:
            return "bytes"
        ends = names == ["BPEDecoder"]
        local = _ends_words(self._hf.get_vocab(), stages[0]["suffix"]) if ends else _is_local(stages)
        return "pieces" if local and self._text([ANCHOR]) == ANCHOR else "whole"

    @cached_property
    def _backend(self) -> Any | None:
        """The tokenizer of the `tokenizers` library, where nothing but its decoder has a say in the text."""
        kind = type(self._hf)
        plain = transformers.TokenizersBackend
        if not isinstance(self._hf, plain):
            return None
        unchanged = kind.decode is plain.decode and kind._decode is plain._decode
        return self._hf.backend_tokenizer if unchanged else None

    @cached_property
    def _text(self) -> Callable[[list[str]], str]:
        """Tokens to text."""
        decoder = None if self._backend is None else self._backend.decoder
        return " ".join if decoder is None else decoder.decode

    @cached_property
    def _has_bytes(self) -> bool:
        decoder = None if self._backend is None else self._backend.decoder
        stages = [] if decoder is None else _flat(json.loads(decoder.__getstate__()))
        return any(stage["type"] == "ByteFallback" for stage in stages)

    @cached_property
    def _special(self) -> frozenset[str]:
        added = self._backend.get_added_tokens_decoder() if self._backend is not None else {}
        return frozenset(token.content for token in added.values() if token.special)

    def _token(self, token_id: int) -> str | None:
        """An id's token; None for one that adds no text."""
        if token_id not in self._tokens:
            assert self._backend is not None
            token = self._backend.id_to_token(token_id)
            self._tokens[token_id] = None if token in self._special else token
        return self._tokens[token_id]

    def _level_bytes(self, token_id: int) -> bytes:
        """A token's bytes, where the vocabulary is byte-level."""
        token = self._token(token_id)
        return b"" if token is None else _level_bytes(token)

    def _byte(self, token: str) -> int | None:
        """The byte that a token stands for, where the decoder reads such tokens."""
        found = _BYTE.fullmatch(token) if self._has_bytes else None
        return int(found[1], 16) if found else None

    def _after_text(self, token_id: int) -> bytes:
        """What a token of which nothing is known adds to another's text, or says alone."""
        ids = self._hf(ANCHOR, add_special_tokens=False)["input_ids"]
        before, whole = self.decode(ids), self.decode([*ids, token_id])
        return (whole[len(before) :] if whole.startswith(before) else self.decode([token_id])).encode(errors="replace")


def _flat(stage: Stage) -> list[Stage]:
    """The stages of a decoder, in their order."""
    if stage["type"] == "Sequence":
        return [one for inner in stage["decoders"] for one in _flat(inner)]
    return [stage]


def _is_local(stages: Sequence[Stage]) -> bool:
    """Whether a token's text depends on nothing but whether text stands before it (runs of bytes aside)."""
    names = [stage["type"] for stage in stages]
    fused = names.index("Fuse") if "Fuse" in names else len(names)
    if not all(name in _EACH_TOKEN for name in names[:fused]):
        return False
    return all(_is_local_in_text(stage) for stage in stages[fused:])


def _is_local_in_text(stage: Stage) -> bool:
    """Whether a stage that reads the whole text looks at one character at a time, or at the text's beginning."""
    if stage["type"] == "Strip":
        return bool(stage["stop"] == 0)
    if stage["type"] == "Replace":
        return bool(len(stage["pattern"].get("String", "")) == 1)
    return bool(stage["type"] == "Fuse")


def _ends_words(tokens: Mapping[str, int], suffix: str) -> bool:
    """Whether the mark of a word's end stands at tokens' ends alone, so that it takes back nothing."""
    return bool(suffix) and all(token.find(suffix) in (-1, len(token) - len(suffix)) for token in tokens)


def _level_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary is written for; UTF-8 where it is written as itself."""
    raw = [_LEVEL.get(letter) for letter in token]
    return token.encode() if None in raw else bytes(byte for byte in raw if byte is not None)


def _level_letters() -> dict[str, int]:
    """The letter of each byte (GPT-2's table): those that print stand for themselves, the others begin at U+0100."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {**{chr(byte): byte for byte in printed}, **{chr(0x100 + i): byte for i, byte in enumerate(others)}}


_LEVEL = _level_letters()
