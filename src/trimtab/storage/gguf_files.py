"""GGUF files: who runs one, llama.cpp as it is or transformers dequantised, and loading it for llama.cpp."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.core import LanguageModel
from trimtab.errors import (
    CheckpointError,
    CompatibilityError,
    OptionError,
    OutputExistsError,
    naming,
    unknown_name,
)
from trimtab.storage.cards import is_adapter, named_base
from trimtab.storage.directories import GGUF_READING, cache_dir, demo_file, locate_guide
from trimtab.storage.files import new_directory

if TYPE_CHECKING:
    from trimtab.models.llama.header import Header
    from trimtab.models.llama.model import LlamaModel
    from trimtab.models.llama.options import LlamaOptions
    from trimtab.models.llama.text import TextSide

log = logging.getLogger(__name__)

LLAMA, TRANSFORMERS = "llama", "transformers"
BACKENDS = (LLAMA, TRANSFORMERS)


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that a model's name stands for: one itself, or the demo model's; None for any other name."""
    if str(name) == "demo":
        return demo_file()
    path = Path(name)
    return path if path.suffix == ".gguf" else None


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody said of how a model is run: `--backend`, and settings that only transformers' weights have."""

    backend: str | None = None
    dtype: str = "auto"
    quantize: str | None = None
    device: str | None = None

    @property
    def of_transformers(self) -> str | None:
        """The setting, as a flag, that has no meaning for a file that is run as it is."""
        if self.dtype != "auto":
            return f"--dtype {self.dtype}"
        if self.quantize is not None:
            return f"--quantize {self.quantize}"
        if self.device not in (None, "cpu"):
            return f"--device {self.device}"
        return None


def choose_backend(name: str | Path, asked: Asked, *, has_options: bool = False) -> str:
    """Who runs a model, and a line about it for a GGUF file.

    Where nobody asks, llama.cpp runs a file named `*.gguf`, if a binding is installed. Raises OptionError where what is
    asked for does not go together, MissingExtraError and CompatibilityError where llama.cpp was asked for in vain.
    """
    if asked.backend not in (None, *BACKENDS):
        raise unknown_name("backend", asked.backend, BACKENDS)
    path = gguf_file(name)
    wanted = asked.backend == LLAMA or (has_options and asked.backend is None)
    if wanted:
        return _llama_asked(name, path, asked)
    if has_options:
        raise OptionError("--llama is about --backend llama; leave it out, or the other backend.")
    if path is None or str(name) == "demo" or asked.backend == TRANSFORMERS:
        return TRANSFORMERS
    reason = _why_not(asked)
    if reason is not None:
        log.info("%s is dequantised for transformers: %s", path.name, reason)
        return TRANSFORMERS
    return LLAMA


def _llama_asked(name: str | Path, path: Path | None, asked: Asked) -> str:
    if path is None:
        raise OptionError(f"--backend llama runs GGUF files, and {name} is none. Accepted: FILE.gguf, or demo.")
    if asked.of_transformers is not None:
        raise OptionError(
            f"{asked.of_transformers} is about weights that transformers holds; --backend llama runs {path.name} as it "
            "is. Leave one of them out. Where layers go is said by --llama n_gpu_layers=N."
        )
    from trimtab.models.llama.library import library

    library()
    return LLAMA


def _why_not(asked: Asked) -> str | None:
    """Why a file is not run as it is, though nobody asked for transformers."""
    from trimtab.models.llama.library import is_installed, library

    if asked.of_transformers is not None:
        return f"{asked.of_transformers} says so"
    if not is_installed():
        return 'llama.cpp, which runs it as it is, is not installed (pip install "trimtab[llama]")'
    try:
        library()
    except CompatibilityError as error:
        return str(error)
    return None


def load_llama(name: str | Path, options: LlamaOptions | Mapping[str, object] | None = None) -> LlamaModel:
    """Load a GGUF file, or "demo", to be run by llama.cpp as it is.

    `options` are llama.cpp's own, by name (`models.llama.options`): `{"n_gpu_layers": 99, "type_k": "q8_0"}`.
    Its tokenizer is read by transformers, once, into the cache; the first file of a kind is tried in a process of its
    own (`models.llama.probe`). Raises CheckpointError for a file that is missing, cut or unknown, CompatibilityError
    for one that cannot be guided, and MissingExtraError where llama.cpp is not installed.
    """
    from trimtab.models.llama.file import LlamaFile
    from trimtab.models.llama.header import read_header
    from trimtab.models.llama.library import library
    from trimtab.models.llama.options import LlamaOptions
    from trimtab.models.llama.probe import repacks

    path = gguf_file(name)
    if path is None:
        raise CheckpointError(f"{name} is no GGUF file. Accepted: FILE.gguf, or demo.")
    header = read_header(path)
    build = library().build
    if not isinstance(options, LlamaOptions):
        options = LlamaOptions.of_pairs([(key, str(value)) for key, value in (options or {}).items()])
    if options.use_extra_bufts is None:
        options = replace(options, use_extra_bufts=repacks(header, cache_dir()))
    with _switching(), ThreadPoolExecutor(1) as beside:
        loading = beside.submit(LlamaFile, path, options, header=header)
        from trimtab.models.llama.model import LlamaModel  # which imports transformers

        text = _text_side(header)
        file = loading.result()
    log.info("%s runs in llama.cpp as it is (%s)", path.name, build)
    return LlamaModel(file, text.tokenizer, name=str(name), eos_ids=text.eos_ids, facts=text.facts, cache=cache_dir())


@contextlib.contextmanager
def _switching() -> Iterator[None]:
    """Let threads take turns often: llama.cpp says a thousand lines while it loads, and each waits for its turn."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 50)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def export_adapter(guide: str | Path, out: Path, *, base: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write a guide that is a LoRA adapter as a GGUF adapter, which llama.cpp itself loads; the base's file.

    `base` is the GGUF file of the model that the guide was trained on; left out, the one that its card names. Raises
    OptionError or CheckpointError for a guide or a base that cannot be written so, BaseMismatchError for another base,
    OutputExistsError where something stands at `out`.
    """
    from trimtab.models.adapters.lora import LoRA
    from trimtab.models.llama.adapters import write_adapter
    from trimtab.models.llama.header import read_header

    if out.suffix != ".gguf":
        raise OptionError(f"{out} is not the name of a GGUF file; let it end in .gguf.")
    if out.exists() and not overwrite:
        raise OutputExistsError(out, resume=False)
    located = locate_guide(guide)
    directory, card = located.directory, located.card
    if not is_adapter(directory):
        raise OptionError(
            f"{guide} is not a LoRA adapter (its kind is {card.kind!r}), which is all that llama.cpp can load beside a "
            "model. Accepted: guides that trimtab train arm, dpo or rl wrote, and plain peft adapters."
        )
    named = base or named_base(directory, card)
    path = None if named is None else gguf_file(named)
    if path is None:
        raise naming(
            OptionError,
            "The guide {0} was trained on {1}, which is no GGUF file. Name the file of that model ({model}): its "
            "layers have other names and orders there, which the adapter has to follow.",
            *(guide, named or "a model that it does not name"),
        )
    header = read_header(path)
    text = _text_side(header)
    adapter = LoRA.load(directory, card.trained_on)
    adapter.check_trained_on({"norms": [], **text.facts, "name": str(named)}, text.tokenizer)
    write_adapter(out, adapter, header, name=str(guide))
    return path


def llama_options_of(model: LanguageModel | None) -> LlamaOptions | None:
    """How a model is run by llama.cpp; None for one that is not."""
    if "trimtab.models.llama.model" not in sys.modules:  # so there is none
        return None
    from trimtab.models.llama.model import LlamaModel

    return model.file.options if isinstance(model, LlamaModel) else None


def _text_side(header: Header) -> TextSide:
    from trimtab.models.llama.text import is_written, read_text_side, write_text_side

    directory = cache_dir() / f"{header.path.stem.lower()}-text{GGUF_READING}-{header.digest[:12]}"
    if not is_written(directory):
        log.info("reading the tokenizer of %s into %s (once)", header.path.name, directory)
        try:
            with new_directory(directory) as temporary:
                write_text_side(header, temporary)
        except OSError:
            if not is_written(directory):  # unless another process was faster
                raise
    return read_text_side(directory)
