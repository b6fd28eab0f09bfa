"""A model by name and how it is loaded, as one value: for an engine, or for a worker that loads it elsewhere."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.storage.gguf_files import LLAMA, Asked, choose_backend, load_llama
from trimtab.storage.loading import load_model

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.models.llama.model import LlamaModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The arguments of `load_model`, or of `load_llama` for a GGUF file, kept until the model is needed."""

    name: str
    dtype: str = "auto"
    device: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    quantize: str | None = None
    backend: str | None = None
    """Who runs a GGUF file, `llama` or `transformers`; None: llama.cpp where it is installed (`choose_backend`)."""
    llama: tuple[tuple[str, str], ...] = ()
    """Options of llama.cpp (`models.llama.options`)."""

    def load(self) -> HFModel | LlamaModel:
        """Load it."""
        if self.runs_in_llama():
            from trimtab.models.llama.options import LlamaOptions

            return load_llama(self.name, LlamaOptions.of_pairs(self.llama))
        return self.load_in_transformers()

    def load_in_transformers(self) -> HFModel:
        """Load it as transformers runs it, whoever was asked for."""
        log.debug("loading %s", self.name)
        return load_model(
            self.name,
            dtype=self.dtype,
            quantize=self.quantize,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
        )

    def runs_in_llama(self) -> bool:
        """Whether llama.cpp runs it. Raises OptionError for settings that do not go together, MissingExtraError and
        CompatibilityError where llama.cpp was asked for in vain."""
        asked = Asked(self.backend, self.dtype, self.quantize, self.device)
        return choose_backend(self.name, asked, has_options=bool(self.llama)) == LLAMA
