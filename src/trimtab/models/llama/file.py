"""A GGUF file that llama.cpp has loaded: its weights, once in memory, and the adapters that were made for it."""

from __future__ import annotations

import ctypes
import logging
import weakref
from functools import cached_property
from pathlib import Path

from trimtab.errors import CheckpointError, CompatibilityError
from trimtab.models.llama.header import Header, read_header
from trimtab.models.llama.library import Library, library
from trimtab.models.llama.options import BYTES, LlamaOptions
from trimtab.models.llama.pages import release_pages

log = logging.getLogger(__name__)


class LlamaFile:
    """The weights of a file. They are freed when the last context, adapter or model that holds this is gone.

    Raises CheckpointError for a file that does not load, CompatibilityError for a network that cannot be driven row by
    row, and what `library.library` raises.
    """

    def __init__(self, path: Path, options: LlamaOptions | None = None, *, header: Header | None = None) -> None:
        self.path = path
        self.header = header or read_header(path)
        self.options = options or LlamaOptions()
        self.library = library()
        self.pointer = _loaded(self.library, path, self.header, self.options)
        weakref.finalize(self, self.library, "model_free", self.pointer).atexit = False
        release_pages(path)
        self._vocabulary = self.library("model_get_vocab", self.pointer)
        self.vocab_size = int(self.library("vocab_n_tokens", self._vocabulary))
        self.hidden_size = int(self.library("model_n_embd", self.pointer))
        self.max_length = int(self.library("model_n_ctx_train", self.pointer)) or None
        self.num_bytes = int(self.library("model_size", self.pointer))
        """What its weights take."""
        self.token_bytes = _token_bytes(self.header, self.options)
        """What a token of a row takes in a context; 0 where the file does not say."""
        self._refuse_kind()

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every token that the file, or llama.cpp by its text, takes for an end of generation."""
        is_end = self.library.quick("vocab_is_eog")
        return frozenset(token_id for token_id in range(self.vocab_size) if is_end(self._vocabulary, token_id))

    def _refuse_kind(self) -> None:
        kinds = ("is_recurrent", "is_hybrid", "is_diffusion", "has_encoder")
        kind = next((kind for kind in kinds if self.library(f"model_{kind}", self.pointer)), None)
        if kind is not None:
            what = kind.removeprefix("is_").replace("has_encoder", "encoder-decoder")
            raise CompatibilityError(
                f"{self.path.name} holds a {what} network ({self.header.architecture}), whose rows cannot take tokens "
                "back or share what they begin with. Accepted with --backend llama: networks of attention alone. Use "
                "--backend transformers."
            )


class LlamaAdapter:
    """A LoRA adapter that was loaded for a file, to be used in any of its contexts.

    Raises CheckpointError for a file that llama.cpp does not take for an adapter of this model.
    """

    def __init__(self, file: LlamaFile, path: Path) -> None:
        self.file = file
        self.file.library.complaints()
        self.pointer = file.library("adapter_lora_init", file.pointer, str(path).encode())
        if not self.pointer:
            said = file.library.complaints() or "it does not say why"
            raise CheckpointError(f"llama.cpp does not load the adapter {path}: {said}")
        weakref.finalize(self, _free_adapter, file, self.pointer).atexit = False


def _free_adapter(file: LlamaFile, pointer: int) -> None:
    """Free an adapter while its file is held, whose end would free it too."""
    file.library("adapter_lora_free", pointer)


def _loaded(native: Library, path: Path, header: Header, options: LlamaOptions) -> int:
    params = native.default_model_params()
    if options.n_gpu_layers is not None:
        params.n_gpu_layers = options.n_gpu_layers
        if options.n_gpu_layers > 0 and not native("supports_gpu_offload"):
            log.warning("n_gpu_layers=%d: the build of %s has no GPU", options.n_gpu_layers, native.build)
    params.main_gpu = options.main_gpu
    params.check_tensors = options.check_tensors
    params.use_extra_bufts = options.use_extra_bufts is not False
    native.complaints()
    pointer: int | None = native("model_load_from_file", str(path).encode(), params)
    if pointer is None:
        said = native.complaints() or "it does not say why"
        raise CheckpointError(
            f"llama.cpp ({native.build}) does not load {path} (architecture {header.architecture or 'not named'}): "
            f"{said} Use --backend transformers, or a file that this build knows."
        )
    return pointer


def _token_bytes(header: Header, options: LlamaOptions) -> int:
    """Keys and values of all layers, by the shapes of the layers' own products where they can be read."""
    total = 0.0
    for index in range(header.number("block_count") or 0):
        for name, kind in (("attn_k", options.type_k), ("attn_v", options.type_v)):
            info = header.tensors.get(f"blk.{index}.{name}.weight")
            if info is None:
                return 0
            total += info.shape[0] * BYTES[kind]
    return round(total)


def float_array(values: list[float]) -> ctypes.Array[ctypes.c_float]:
    """Numbers as C has them."""
    return (ctypes.c_float * len(values))(*values)
