"""A context: what llama.cpp remembers of sequences, and the calls that extend it.

Whatever a caller gets wrong ends the process, so each limit is checked here before the call: how many tokens a batch
has, how many of them are asked for numbers, which sequences there are.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import ModelError, OptionError
from trimtab.models.llama.file import LlamaAdapter, LlamaFile, float_array
from trimtab.models.llama.options import CACHE_TYPES, FLASH
from trimtab.models.llama.structs import Batch

MAX_SEQUENCES = 256
"""What llama.cpp is compiled for."""
_FULL = 1


@dataclass(frozen=True, slots=True)
class Fed:
    """A token to be fed: where, to which sequence, and whether the numbers after it are wanted."""

    token_id: int
    position: int
    sequence: int
    wanted: bool


class ContextFull(Exception):  # noqa: N818  no error, but a reason to take a larger one
    """A context has no room for the tokens it was to be fed; it is as it was before."""


class LlamaContext:
    """Sequences of one file, under one adapter or none, in `num_cells` places for tokens.

    Raises ModelError where llama.cpp does not make it, which is for want of memory as a rule.
    """

    def __init__(self, file: LlamaFile, adapter: LlamaAdapter | None, num_cells: int, num_sequences: int) -> None:
        if not 1 <= num_sequences <= MAX_SEQUENCES:
            raise OptionError(f"{num_sequences} sequences; llama.cpp holds 1 to {MAX_SEQUENCES} in a context.")
        self._call = file.library
        self._held = (file, adapter)  # neither may be freed before this is
        self._vocab_size, self._hidden_size = file.vocab_size, file.hidden_size
        self._pointer = _made(file, num_cells, num_sequences)
        weakref.finalize(self, file.library, "free", self._pointer).atexit = False
        if adapter is not None:
            one = (ctypes.c_void_p * 1)(adapter.pointer)
            file.library("set_adapters_lora", self._pointer, one, 1, float_array([1.0]))
        self._memory = file.library("get_memory", self._pointer)
        self.num_cells = int(file.library("n_ctx", self._pointer))
        self.num_sequences = int(file.library("n_seq_max", self._pointer))
        self.most_tokens = int(file.library("n_batch", self._pointer))
        """Tokens of one call at most."""
        self.most_wanted = self.num_sequences
        """Tokens of one call whose numbers are wanted, at most."""
        self._threads = _threads(file)
        self._batch = _Batch(self.most_tokens)

    def decode(self, tokens: Sequence[Fed], *, states: bool = False) -> tuple[Tensor, Tensor | None]:
        """Feed tokens; [N, V] unnormalised numbers after those whose numbers are wanted, in their order.

        With `states` also [N, D], the states after the final norm; then every token has to be wanted. The numbers lie
        in the library's memory until the next call. Raises ContextFull where there is no room, ModelError where the
        library fails.
        """
        wanted = sum(token.wanted for token in tokens)
        if not 1 <= len(tokens) <= self.most_tokens or wanted > self.most_wanted:
            raise ValueError(f"{len(tokens)} tokens, {wanted} of them wanted, do not go into one call")
        if states and wanted < len(tokens):
            raise ValueError("states are given after every token of a call")
        if any(not 0 <= token.sequence < self.num_sequences for token in tokens):
            raise ValueError("there is no such sequence")
        if self._threads != (now := _threads(self._held[0])):
            self._threads = now
            self._call("set_n_threads", self._pointer, *now)
        self._call("set_embeddings", self._pointer, states)
        code = int(self._call("decode", self._pointer, self._batch.of(tokens)))
        if code == _FULL:
            raise ContextFull
        if code:
            said = self._call.complaints() or "it does not say why"
            raise ModelError(f"llama.cpp could not compute a step (code {code}): {said}")
        logits = self._numbers("get_logits", wanted, self._vocab_size)
        return logits, self._numbers("get_embeddings", wanted, self._hidden_size).clone() if states else None

    def copy(self, source: int, target: int, length: int) -> None:
        """Let an empty sequence begin with the first `length` tokens of another; nothing is computed."""
        self._check(source, target)
        if length > 0:
            self._call("memory_seq_cp", self._memory, source, target, 0, length)

    def cut(self, sequence: int, length: int) -> None:
        """Forget what a sequence has after its first `length` tokens."""
        self._check(sequence)
        if not self._call("memory_seq_rm", self._memory, sequence, length, -1):
            raise ModelError("llama.cpp could not take tokens back; this network is not one that can be guided.")

    def _check(self, *sequences: int) -> None:
        if any(not 0 <= sequence < self.num_sequences for sequence in sequences):
            raise ValueError(f"sequences {sequences} of {self.num_sequences}")

    def _numbers(self, name: str, num: int, width: int) -> Tensor:
        if not num:
            return torch.empty(0, width)
        pointer = self._call(name, self._pointer)
        if not pointer:
            raise ModelError("llama.cpp gave no numbers after a step.")
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (num, width)))


class _Batch:
    """The arrays of a `llama_batch`, made once."""

    def __init__(self, most: int) -> None:
        self._tokens = np.zeros(most, dtype=np.int32)
        self._positions = np.zeros(most, dtype=np.int32)
        self._counts = np.ones(most, dtype=np.int32)
        self._sequences = np.zeros(most, dtype=np.int32)
        self._wanted = np.zeros(most, dtype=np.int8)
        first, step = self._sequences.ctypes.data, self._sequences.itemsize
        self._owners = np.arange(most, dtype=np.uint64) * step + first
        integers, pointers = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
        self._structure = Batch(
            0,
            self._tokens.ctypes.data_as(integers),
            None,
            self._positions.ctypes.data_as(integers),
            self._counts.ctypes.data_as(integers),
            self._owners.ctypes.data_as(pointers),
            self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def of(self, tokens: Sequence[Fed]) -> Batch:
        """These tokens as llama.cpp reads them, until the next call."""
        num = len(tokens)
        self._tokens[:num] = [token.token_id for token in tokens]
        self._positions[:num] = [token.position for token in tokens]
        self._sequences[:num] = [token.sequence for token in tokens]
        self._wanted[:num] = [token.wanted for token in tokens]
        self._structure.n_tokens = num
        return self._structure


def _made(file: LlamaFile, num_cells: int, num_sequences: int) -> int:
    options = file.options
    params = file.library.default_context_params()
    params.n_ctx, params.n_seq_max, params.n_outputs_max = num_cells, num_sequences, num_sequences
    params.n_batch = max(options.n_batch, num_sequences)
    params.n_ubatch = min(options.n_ubatch, params.n_batch)
    params.n_threads, params.n_threads_batch = _threads(file)
    params.flash_attn_type = FLASH[options.flash_attn]
    params.type_k, params.type_v = CACHE_TYPES[options.type_k], CACHE_TYPES[options.type_v]
    params.kv_unified = True
    file.library.complaints()
    pointer: int | None = file.library("init_from_model", file.pointer, params)
    if pointer is None:
        said = file.library.complaints() or "it does not say why"
        raise ModelError(
            f"llama.cpp could not make a context of {num_cells} tokens: {said} Shorter prompts, fewer rows at a time, "
            "or caches in fewer bits (--llama type_k=q8_0 --llama type_v=q8_0) take less memory."
        )
    return pointer


def _threads(file: LlamaFile) -> tuple[int, int]:
    """Threads of passes over few and over many tokens."""
    here = torch.get_num_threads()
    return file.options.n_threads or here, file.options.n_threads_batch or here
