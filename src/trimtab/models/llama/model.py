"""A GGUF file, run by llama.cpp as it is, as a `LanguageModel`.

Text goes through the tokenizer that transformers makes of the file, the same that the dequantised model has, so ids,
templates and the beginning of a sequence are the same; only weights go through llama.cpp. Its numbers are those of
products in few bits, whose last bits depend on how many rows go together: the laws hold within a tolerance.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from trimtab.core import ModelSession
from trimtab.models.adapters.lora import LoRA
from trimtab.models.hf import HFTokenizer
from trimtab.models.llama.adapters import adapter_file, check_adapter
from trimtab.models.llama.file import LlamaAdapter, LlamaFile
from trimtab.models.llama.session import LlamaSession, LlamaTrunks
from trimtab.models.llama.trunk import LlamaTrunk
from trimtab.models.trained_on import ModelFacts


class LlamaModel:
    """A frozen language model in a GGUF file, under one adapter or none.

    `facts` are what the dequantised model would say of itself (`describe`), as far as the file tells; `cache` is the
    directory that adapters are written to, a temporary one where it is left out.
    """

    def __init__(
        self,
        file: LlamaFile,
        tokenizer: HFTokenizer | None,
        *,
        name: str = "",
        eos_ids: frozenset[int] = frozenset(),
        facts: ModelFacts | None = None,
        cache: Path | None = None,
        adapter: LlamaAdapter | None = None,
    ) -> None:
        self.file = file
        self.tokenizer = tokenizer
        self.name = name or str(file.path)
        self.vocab_size = self.num_embeddings = file.vocab_size
        self.hidden_size = file.hidden_size
        self.eos_ids = eos_ids | file.eos_ids
        self.max_length = file.max_length
        self.device = torch.device("cpu")
        self._facts = facts or ModelFacts()
        self._cache = cache
        self._adapter = adapter
        self._nameless = _nameless(tokenizer, self.vocab_size)

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        """A session; beside one of a file it shares the context of this very model, where that has one there."""
        trunks = beside.beside if isinstance(beside, LlamaSession) else LlamaTrunks()
        return LlamaSession(trunks.of(self, LlamaTrunk(self.file, self._adapter, self._nameless)), trunks)

    def describe(self) -> ModelFacts:
        """What tells this base from another: its name, shapes, and the mean of some norm weights."""
        return {"norms": [], **self._facts, "name": self.name}

    def check_layers(self, adapter: LoRA) -> None:
        """Raise BaseMismatchError or CompatibilityError for an adapter that llama.cpp cannot apply to this model."""
        check_adapter(adapter, self.file.header)

    def adapted(self, adapter: LoRA) -> LlamaModel:
        """The model under a LoRA adapter: another context on the same weights."""
        with _directory(self._cache) as directory:
            loaded = LlamaAdapter(self.file, adapter_file(adapter, self.file.header, directory))
        return LlamaModel(
            self.file,
            self.tokenizer,
            name=self.name,
            eos_ids=self.eos_ids,
            facts=self._facts,
            cache=self._cache,
            adapter=loaded,
        )


@contextlib.contextmanager
def _directory(cache: Path | None) -> Iterator[Path]:
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def _nameless(tokenizer: HFTokenizer | None, vocab_size: int) -> Tensor | None:
    """Ids that no token has; None where there are none."""
    if tokenizer is None:
        return None
    named = torch.zeros(vocab_size, dtype=torch.bool)
    named[[token_id for token_id in tokenizer.tokens.values() if token_id < vocab_size]] = True
    return None if bool(named.all()) else (~named).nonzero().flatten()
