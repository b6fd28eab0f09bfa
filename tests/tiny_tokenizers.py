"""Tokenizers of every kind, built on the spot: small vocabularies in which characters, words and spaces fall apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.tiny import byte_tokenizer, tiny_tokenizer

SPECIALS = ["<unk>", "<s>", "</s>"]
WORDS = ["a", "b", "was", "do", "n't", ".", ",", "?", "日", "é", "😀", "\ufffd", "x y", "</w>", "##"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _fast(model: Any, decoder: Any | None, **options: Any) -> Any:
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder is not None:
        inner.decoder = decoder
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    )
    fast.add_tokens([AddedToken("<think>", special=False), AddedToken("＜tool＞ x", special=False)])
    fast.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    return fast


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys([*SPECIALS, *tokens]))}


def _pieces(space: str = "▁") -> list[str]:
    return [*WORDS, *(space + word for word in WORDS), space, 2 * space, f"{2 * space}a", f"a{space}b", f"a{space}"]


def _bpe(tokens: list[str], decoder: Any | None, **options: Any) -> Any:
    return _fast(models.BPE(vocab=_ids(tokens), merges=[], unk_token="<unk>"), decoder, **options)


def _unigram(tokens: list[str], decoder: Any, **options: Any) -> Any:
    return _fast(models.Unigram([(token, -1.0) for token in _ids(tokens)], unk_id=0), decoder, **options)


def _byte_level() -> Any:
    """Beside single bytes, tokens that begin and end inside characters, as merges make them."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def letters(text: str) -> str:
        """One letter a byte."""
        return "".join(part for part, _ in level.pre_tokenize_str(text))

    parts = [letters("日本")[:4], letters("日本")[4:], letters("本日")[2:5], letters(" é")[:2], letters(" 😀")[:4]]
    wholes = [letters(text) for text in ("日本", " was", "😀", "\ufffd")]
    fast = _bpe([*pre_tokenizers.ByteLevel.alphabet(), *parts, *wholes], decoders.ByteLevel())
    fast.backend_tokenizer.pre_tokenizer = level
    return fast


def _strip_and_fuse(*more: Any) -> Any:
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more]
    return decoders.Sequence(stages)


def _llama() -> Any:
    vocab = _ids([*BYTES, *_pieces()])
    return transformers.LlamaTokenizer(vocab=vocab, merges=[])


_WORDPIECES = [*WORDS, *("##" + word for word in WORDS)]
_ENDED = [*WORDS, *(word + "</w>" for word in WORDS)]

KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "byte-level": ("bytes", _byte_level),
    "single bytes": ("bytes", byte_tokenizer),
    "llama": ("pieces", _llama),
    "byte fallback": ("pieces", lambda: _bpe([*BYTES, *_pieces()], _strip_and_fuse())),
    "byte fallback, space stripped": (
        "pieces",
        lambda: _bpe([*BYTES, *_pieces()], _strip_and_fuse(decoders.Strip(" ", 2, 0))),
    ),
    "metaspace": ("pieces", lambda: _bpe(_pieces(), decoders.Metaspace())),
    "metaspace, never first": ("pieces", lambda: _bpe(_pieces(), decoders.Metaspace(prepend_scheme="never"))),
    "unigram": ("pieces", lambda: _unigram(_pieces(), decoders.Metaspace(prepend_scheme="first"))),
    "unigram with bytes": (
        "pieces",
        lambda: _unigram(
            [*BYTES, *_pieces()], decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
        ),
    ),
    "wordpiece": (
        "pieces",
        lambda: _fast(models.WordPiece(vocab=_ids(_WORDPIECES), unk_token="<unk>"), decoders.WordPiece()),
    ),
    "wordpiece, cleaned up twice": (
        "pieces",
        lambda: _fast(
            models.WordPiece(vocab=_ids(_WORDPIECES), unk_token="<unk>"),
            decoders.WordPiece(cleanup=False),
            clean_up_tokenization_spaces=True,
        ),
    ),
    "words": ("pieces", tiny_tokenizer),
    "words' ends": ("pieces", lambda: _bpe([word for word in _ENDED if word != "</w></w>"], decoders.BPEDecoder())),
    "words' ends within": ("whole", lambda: _bpe([*_ENDED, "a</w>b"], decoders.BPEDecoder())),
    "regular expressions": (
        "whole",
        lambda: _bpe(_pieces(), _strip_and_fuse(decoders.Replace(tokenizers.Regex(" {2,}"), "_"))),
    ),
    "bytes of ByT5": ("whole", transformers.ByT5Tokenizer),
}
"""Name -> the kind of its spelling (`models.decoders.Decoding.kind`), and how it is made."""


@cache
def made(name: str) -> Any:
    return KINDS[name][1]()
