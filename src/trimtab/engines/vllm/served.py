"""The base of a packed directory as `KnownModel`: it knows its tokens, and its weights are inside vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from trimtab.core import ModelSession
from trimtab.engines.vllm.manifest import Manifest
from trimtab.errors import CompatibilityError
from trimtab.models.trained_on import ModelFacts


@dataclass(frozen=True, slots=True)
class RunningGuide:
    """A guide inside vLLM, as the server and the commands ask about it."""

    weight: float
    """In a request that does not name it."""
    form: str | None = None
    """`product` or `shift` (`trimtab.mixing.forms`)."""
    selection: None = None
    """It tilts."""


class ServedModel:
    """What a server, a method or a command reads of the base. `max_length` is the engine's: guides count."""

    def __init__(self, manifest: Manifest, *, name: str, max_length: int, device: str, trust_remote_code: bool) -> None:
        from trimtab.models.outline import Outline  # transformers, which `import trimtab` leaves alone

        self._outline = Outline(Path(manifest.base), name=name, trust_remote_code=trust_remote_code)
        self.name = self._outline.name
        self.tokenizer = self._outline.tokenizer
        self.vocab_size = self._outline.vocab_size
        self.hidden_size = self._outline.hidden_size
        self.eos_ids = self._outline.eos_ids
        self.max_length = max_length
        self.device = torch.device(device)

    def open(self, beside: ModelSession | None = None) -> NoReturn:
        """Raise CompatibilityError: whoever takes it for a loaded model is told what to use."""
        raise CompatibilityError(
            "This model's weights are inside vLLM, which has no sessions to step by hand. Use the engine's add, step, "
            "generate and answers, or load the model with load_model."
        )

    def describe(self) -> ModelFacts:
        """What tells this model from another: its name, and `backbone.describe`."""
        return self._outline.describe()
