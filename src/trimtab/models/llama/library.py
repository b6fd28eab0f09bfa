"""llama.cpp's C interface, as far as it is used here, found inside an installed binding.

No binding's Python is imported: its shared library is opened with ctypes, and only what is declared here is called.
That interface is no promise, so builds are named (`BINDINGS`), and the structures' defaults are checked when the
library is opened. What a caller gets wrong ends the process (`ggml_abort`), so every limit is checked before a call
(`context`).
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.metadata
import importlib.util
import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trimtab.errors import CompatibilityError, MissingExtraError
from trimtab.models.llama import structs
from trimtab.models.llama.structs import AnyContextParams, Batch, ModelParams

log = logging.getLogger(__name__)

WAY_OUT = 'pip install "trimtab[llama]", or use --backend transformers'
_WARNING, _ERROR = 3, 4
_LINES = 24


@dataclass(frozen=True, slots=True)
class Binding:
    """A Python package that carries llama.cpp, and the versions of it that were tried."""

    distribution: str
    package: str
    versions: tuple[str, ...]
    libraries: tuple[str, ...]
    """Patterns of its shared library's file, relative to the package; what one needs beside it comes with it."""
    context_params: type[AnyContextParams]


BINDINGS = (
    Binding(
        "xllamacpp",
        "xllamacpp",
        ("2026.10.11549",),
        ("xllamacpp*.so", "xllamacpp*.pyd"),
        structs.ContextParamsWithExperts,
    ),
    Binding(
        "llama-cpp-python",
        "llama_cpp",
        ("0.3.36",),
        ("lib/libllama.so", "lib/libllama.dylib", "lib/llama.dll"),
        structs.ContextParams,
    ),
)
"""In the order in which they are looked for. The first has wheels for Linux, macOS and Windows; only its Linux wheel
was tried. The second compiles itself when it is installed."""

_DECLARATIONS: Mapping[str, tuple[Any, Sequence[Any]]] = {
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_model_n_embd": (c_int32, (c_void_p,)),
    "llama_model_n_ctx_train": (c_int32, (c_void_p,)),
    "llama_model_size": (c_uint64, (c_void_p,)),
    "llama_model_has_encoder": (c_bool, (c_void_p,)),
    "llama_model_is_recurrent": (c_bool, (c_void_p,)),
    "llama_model_is_hybrid": (c_bool, (c_void_p,)),
    "llama_model_is_diffusion": (c_bool, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_vocab_is_eog": (c_bool, (c_void_p, c_int32)),
    "llama_free": (None, (c_void_p,)),
    "llama_n_ctx": (c_uint32, (c_void_p,)),
    "llama_n_batch": (c_uint32, (c_void_p,)),
    "llama_n_seq_max": (c_uint32, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    "llama_memory_seq_cp": (None, (c_void_p, c_int32, c_int32, c_int32, c_int32)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_set_embeddings": (None, (c_void_p, c_bool)),
    "llama_set_n_threads": (None, (c_void_p, c_int32, c_int32)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits": (POINTER(c_float), (c_void_p,)),
    "llama_get_embeddings": (POINTER(c_float), (c_void_p,)),
    "llama_adapter_lora_init": (c_void_p, (c_void_p, c_char_p)),
    "llama_adapter_lora_free": (None, (c_void_p,)),
    "llama_set_adapters_lora": (c_int32, (c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float))),
    "llama_supports_gpu_offload": (c_bool, ()),
    "llama_print_system_info": (c_char_p, ()),
}
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)


class Library:
    """An opened library. Its functions are attributes under the names of `llama.h`, less `llama_`."""

    def __init__(self, path: Path, binding: Binding, version: str) -> None:
        self.path = path
        self.build = f"{binding.distribution} {version}"
        """The binding and its version."""
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._functions = _opened(path, self.build, binding.context_params)
        self._log = _LogCallback(self._note)
        self._silence()
        self.context_params = binding.context_params
        structs.check(self.default_model_params(), structs.MODEL_DEFAULTS, self.build)
        structs.check(self.default_context_params(), structs.CONTEXT_DEFAULTS, self.build)
        self("backend_init")

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call `llama_{name}`."""
        return self._functions[f"llama_{name}"](*arguments)

    def quick(self, name: str) -> Any:
        """`llama_{name}`, to be called very often: other threads of Python wait, so it has to be a short one."""
        function = self._functions[f"llama_{name}"]
        held = ctypes.PYFUNCTYPE(function.restype, *function.argtypes)
        return held(ctypes.cast(function, c_void_p).value or 0)

    def default_model_params(self) -> ModelParams:
        """The settings that a file is loaded with where nobody says otherwise."""
        params: ModelParams = self("model_default_params")
        return params

    def default_context_params(self) -> AnyContextParams:
        """The settings of a context where nobody says otherwise."""
        params: AnyContextParams = self("context_default_params")
        return params

    def complaints(self) -> str:
        """What the library has warned of or complained about since it was asked last, as one text."""
        said = " ".join(line.strip() for line in self._lines if line.strip())
        self._lines.clear()
        return said

    def _note(self, level: int, text: bytes, _: object) -> None:
        if level in (_WARNING, _ERROR):
            line = text.decode("utf-8", "replace")
            self._lines.append(line)
            log.debug("llama.cpp: %s", line.rstrip())

    def _silence(self) -> None:
        """Hear what the library says instead of letting it print; at the end of the process it is let go."""
        for name in ("llama_log_set", "ggml_log_set"):
            setter = self._functions[name]
            setter(self._log, None)
            atexit.register(setter, _LogCallback(), None)


@cache
def library() -> Library:
    """The library of the first binding that is installed.

    Raises MissingExtraError where none is, CompatibilityError for a build that is not known or does not open.
    """
    found = _installed()
    if found is None:
        raise MissingExtraError(BINDINGS[0].distribution, "llama", "Running a GGUF file as it is")
    binding, directory = found
    version = _version(binding)
    if version not in binding.versions:
        raise CompatibilityError(
            f"{binding.distribution} {version} is installed; its llama.cpp was not tried with trimtab, and a layout "
            f"that differs would crash. Accepted: {', '.join(binding.versions)}. Run: {WAY_OUT}."
        )
    files = [path for pattern in binding.libraries for path in sorted(directory.glob(pattern))]
    if not files:
        raise CompatibilityError(
            f"{binding.distribution} {version} carries no library that is known here ({', '.join(binding.libraries)}). "
            f"Run: {WAY_OUT}."
        )
    return Library(files[0], binding, version)


def is_installed() -> bool:
    """Whether a binding is installed; it may still be of a build that is refused."""
    return _installed() is not None


def _installed() -> tuple[Binding, Path] | None:
    for binding in BINDINGS:
        package = importlib.util.find_spec(binding.package)
        if package is not None and package.submodule_search_locations:
            return binding, Path(package.submodule_search_locations[0])
    return None


def _version(binding: Binding) -> str:
    try:
        return importlib.metadata.version(binding.distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _opened(path: Path, build: str, context_params: type[AnyContextParams]) -> dict[str, Any]:
    """The declared functions of a library. Raises CompatibilityError where it does not open, or lacks one."""
    declared: dict[str, tuple[Any, Sequence[Any] | None]] = {
        **_DECLARATIONS,
        "llama_context_default_params": (context_params, ()),
        "llama_init_from_model": (c_void_p, (c_void_p, context_params)),
        "llama_log_set": (None, (_LogCallback, c_void_p)),
        "ggml_log_set": (None, (_LogCallback, c_void_p)),
    }
    try:
        opened = ctypes.CDLL(str(path), mode=getattr(os, "RTLD_LOCAL", 0) | getattr(os, "RTLD_LAZY", 0))
        functions = {name: getattr(opened, name, None) for name in declared}
        if functions["ggml_log_set"] is None:  # a library of its own, beside this one
            functions["ggml_log_set"] = functions["llama_log_set"]
    except OSError as error:
        raise CompatibilityError(f"The llama.cpp of {build} does not open: {error}. Run: {WAY_OUT}.") from error
    missing = sorted(name for name, function in functions.items() if function is None)
    if missing:
        raise CompatibilityError(f"The llama.cpp of {build} has no {missing[0]}. Run: {WAY_OUT}.")
    for name, function in functions.items():
        assert function is not None
        result, arguments = declared[name]
        function.restype = result
        function.argtypes = arguments
    return functions
