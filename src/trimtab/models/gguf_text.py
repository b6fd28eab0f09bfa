"""The tokenizer of a GGUF file, by transformers, cutting text into words as the file says.

A byte-level vocabulary's merges were learnt on text that had been cut first, and the file names the way
(`tokenizer.ggml.pre`). transformers knows some of these names and takes GPT-2's way for the others. Of those, a family
cuts every digit off before it goes GPT-2's way; that family is added here, and any other name is warned of.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, pre_tokenizers

from trimtab.errors import CheckpointError
from trimtab.models.llama.header import Header, read_header

log = logging.getLogger(__name__)

_PRE = "tokenizer.ggml.pre"
_DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Names for: every digit by itself, the rest as GPT-2 does (llama.cpp's src/llama-vocab.cpp)."""
_AS_GPT2 = frozenset({"", "default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jina-es", "jina-de", "jais"})


def read_tokenizer(header: Header) -> Any:
    """transformers' tokenizer of the GGUF file with this head.

    Raises CheckpointError where the file holds a tokenizer that transformers does not read. Warns where it asks for a
    way to cut text that neither transformers nor this module knows.
    """
    path = header.path
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # transformers raises a dozen kinds for a file it does not know
        raise CheckpointError(
            f"transformers reads no tokenizer from {path} (architecture {header.architecture!r}): {error}"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        _cut_as_named(backend, str(header.values.get(_PRE, "")), path)
    return tokenizer


def write_tokenizer(path: Path, directory: Path) -> None:
    """Write a GGUF file's tokenizer into an existing directory, in the place of one that stands there.

    Raises CheckpointError where the file is none, is cut, or `read_tokenizer` raises it, OSError where nothing can be
    written.
    """
    tokenizer = read_tokenizer(read_header(path))
    with tempfile.TemporaryDirectory(dir=directory) as name:
        tokenizer.save_pretrained(name)
        for file in Path(name).iterdir():
            os.replace(file, directory / file.name)


def _cut_as_named(backend: Tokenizer, name: str, path: Path) -> None:
    """Change GPT-2's way of cutting text, where it stands for a name that transformers does not know."""
    cutter = backend.pre_tokenizer
    if not isinstance(cutter, pre_tokenizers.ByteLevel) or not cutter.use_regex or name in _AS_GPT2:
        return
    if name in _DIGITS_FIRST:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), cutter])
        return
    log.warning(
        "%s asks for text to be cut into words by %r, which is not known here; it is cut as GPT-2 does, so some texts "
        "become other tokens than the model was trained on. The model's own directory (or hub id) has its tokenizer.",
        path.name,
        name,
    )
