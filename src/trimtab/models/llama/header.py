"""The head of a GGUF file: what it says of its model, and which tensors it holds, without a byte of their weights.

It is read here, so that a wrong file, a cut one or one of a newer format is refused with a sentence before a library
that may end the process sees it. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
F32 = 0
_BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
"""Type of a tensor -> weights in a block, bytes of a block; of a type that is not here the size is not checked."""

Scalar: TypeAlias = int | float | bool | str


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the file: its shape as torch has it (rows first), its type, and where in the file it begins."""

    shape: tuple[int, ...]
    kind: int
    start: int

    @property
    def num_bytes(self) -> int | None:
        """What it takes; None where its type is not known here."""
        if self.kind not in _BLOCKS:
            return None
        weights, size = _BLOCKS[self.kind]
        num = 1
        for length in self.shape:
            num *= length
        return num // weights * size


@dataclass(frozen=True, slots=True)
class Header:
    """What the head of a GGUF file says."""

    path: Path
    values: Mapping[str, Scalar]
    """Keys with one value; lists are not kept."""
    tensors: Mapping[str, TensorInfo]
    digest: str
    """SHA-256 of the head (settings, vocabulary, list of tensors), of the file's size and of some of its weights."""

    @property
    def architecture(self) -> str:
        """What the file calls the kind of its network, such as `llama` or `qwen2`."""
        return str(self.values.get("general.architecture", ""))

    def number(self, key: str) -> int | None:
        """A whole number that the file gives for its architecture, such as `block_count`."""
        value = self.values.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) else None

    def vector(self, name: str) -> Tensor | None:
        """A tensor of one dimension and of type float32; None where there is none of this name."""
        info = self.tensors.get(name)
        if info is None or info.kind != F32 or len(info.shape) != 1:
            return None
        values = np.fromfile(self.path, dtype="<f4", count=info.shape[0], offset=info.start)
        return torch.from_numpy(values.astype(np.float32))


def read_header(path: Path) -> Header:
    """The head of a GGUF file. Raises CheckpointError for what is none, is cut, or is of another format."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size < 24 or file.read(4) != MAGIC:
                raise CheckpointError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _read(path, content, size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (struct.error, UnicodeDecodeError, IndexError, OverflowError) as error:
        raise _cut(path, "ends within its head") from error


def _read(path: Path, content: mmap.mmap, size: int) -> Header:
    reader = _Reader(content)
    version = reader.scalar("I")
    if version not in VERSIONS:
        accepted = " and ".join(map(str, VERSIONS))
        raise CheckpointError(
            f"{path} is a GGUF file of version {version}; this trimtab reads {accepted}. Convert it to one of these, "
            "or update trimtab."
        )
    num_tensors, num_values = int(reader.scalar("Q")), int(reader.scalar("Q"))
    values: dict[str, Scalar] = {}
    for _ in range(num_values):
        key = reader.text()
        value = reader.value(int(reader.scalar("I")))
        if value is not None:
            values[key] = value
    places = [reader.tensor() for _ in range(num_tensors)]
    alignment = int(values.get("general.alignment", 32))
    start = -(-reader.at // alignment) * alignment
    tensors = {name: TensorInfo(shape, kind, start + offset) for name, shape, kind, offset in places}
    for name, info in tensors.items():
        if info.start + (info.num_bytes or 0) > size:
            raise _cut(path, f"ends before the weights of {name} do")
    return Header(path, values, tensors, _digest(content, start, size))


def _digest(content: mmap.mmap, start: int, size: int) -> str:
    """A digest of the head, the size, and the first and last weights: enough to tell one file from another."""
    digest = hashlib.sha256(content[:start])
    digest.update(str(size).encode())
    digest.update(content[start : start + 65536])
    digest.update(content[max(start, size - 65536) :])
    return digest.hexdigest()


def _cut(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"{path} {how}: it is not whole. Download or convert it again.")


class _Reader:
    """A walk through the head of a file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.at = len(MAGIC)

    def scalar(self, code: str) -> int | float | bool:
        [value] = struct.unpack_from(f"<{code}", self._content, self.at)
        self.at += struct.calcsize(f"<{code}")
        found: int | float | bool = value
        return found

    def text(self) -> str:
        length = int(self.scalar("Q"))
        if self.at + length > len(self._content):
            raise IndexError(length)
        found = self._content[self.at : self.at + length].decode("utf-8", "replace")
        self.at += length
        return found

    def value(self, kind: int) -> Scalar | None:
        """A value of a kind; None for a list, which is read past."""
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise IndexError(kind)
        inner, num = int(self.scalar("I")), int(self.scalar("Q"))
        if inner in _SCALARS:
            self.at += num * struct.calcsize(f"<{_SCALARS[inner]}")
        else:
            for _ in range(num):
                self._pass_text() if inner == _STRING else self.value(inner)
        if self.at > len(self._content):
            raise IndexError(num)
        return None

    def _pass_text(self) -> None:
        [length] = struct.unpack_from("<Q", self._content, self.at)
        self.at += 8 + length

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (rows first), type and offset of a tensor."""
        name = self.text()
        num = int(self.scalar("I"))
        shape = tuple(int(self.scalar("Q")) for _ in range(num))[::-1]
        return name, shape, int(self.scalar("I")), int(self.scalar("Q"))
