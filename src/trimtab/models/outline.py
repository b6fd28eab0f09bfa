"""A model without its weights: vocabulary, shapes and norms, enough to tell whether a guide belongs to it.

What it does not do: it predicts nothing. A checkpoint of any size is read in a second, because only the weights of its
norms are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from torch import nn

from trimtab.core import ModelSession
from trimtab.errors import CheckpointError, CompatibilityError
from trimtab.models.forward.grouping import RowAdapter
from trimtab.models.hf import HFTokenizer, end_ids
from trimtab.models.networks.backbone import describe, norm_weights
from trimtab.models.networks.kinds import longest
from trimtab.models.trained_on import ModelFacts

_INDEX = "model.safetensors.index.json"


class Outline:
    """What a directory says of its model. Raises CheckpointError for what is not a causal language model."""

    def __init__(self, directory: Path, *, name: str = "", trust_remote_code: bool = False) -> None:
        self.directory = directory
        self.name = name or str(directory)
        try:
            config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
            with torch.device("meta"):
                module = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        except Exception as error:  # transformers raises a dozen kinds for a bad directory
            raise CheckpointError(f"{directory} does not load as a causal language model: {error}") from error
        self.module: Any = module
        self.architectures: list[str] = list(config.architectures or [type(module).__name__])
        """The checkpoint's own, or the one that transformers would build."""
        self.tokenizer = HFTokenizer(tokenizer)
        text = config.get_text_config()
        self.vocab_size = int(text.vocab_size)
        self.hidden_size = int(text.hidden_size)
        self.max_length = longest(module)
        self.eos_ids = end_ids(_generation_config(directory), config, tokenizer)
        self.device = torch.device("cpu")

    def describe(self) -> ModelFacts:
        """What tells this model from another: its name, and `backbone.describe`."""
        return {"name": self.name, **describe(self._with_norms(), self.vocab_size)}

    def _with_norms(self) -> Any:
        """The network, the weights of its norms read from the checkpoint."""
        files = _files(self.directory)
        for name, weight in norm_weights(self.module):
            if weight.device.type != "meta":
                return self.module
            if name not in files:
                raise CheckpointError(f"{self.directory} holds no {name}. Give a whole checkpoint in safetensors.")
            with safetensors.safe_open(self.directory / files[name], framework="pt") as file:
                owner, _, last = name.rpartition(".")
                setattr(
                    self.module.get_submodule(owner), last, nn.Parameter(file.get_tensor(name), requires_grad=False)
                )
        return self.module

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        raise CompatibilityError("This is an outline of a model, without weights; load it with load_model.")

    def open_rows(self, beside: ModelSession | None, adapter: RowAdapter | None) -> ModelSession:
        return self.open(beside)


def _generation_config(directory: Path) -> Any | None:
    if not (directory / "generation_config.json").exists():
        return None
    return transformers.GenerationConfig.from_pretrained(directory)


def _files(directory: Path) -> dict[str, str]:
    """Name of a weight -> the file that holds it."""
    index = directory / _INDEX
    if index.exists():
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    found: dict[str, str] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path.name))
    return found
