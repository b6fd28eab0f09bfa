"""The text side of a GGUF file: its tokenizer, template and end ids by transformers, and what tells the model apart.

Reading them from the file takes seconds and never changes, so they are written to a directory once (`write_text_side`).
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from trimtab.models.gguf_text import read_tokenizer
from trimtab.models.hf import HFTokenizer, end_ids
from trimtab.models.llama.header import Header
from trimtab.models.networks.backbone import norm_weights
from trimtab.models.trained_on import ModelFacts

log = logging.getLogger(__name__)

_FACTS = "facts.json"
_SHIFTED = ("gemma", "gemma2", "gemma3")
"""Architectures whose norms are stored with 1 added."""


@dataclass(frozen=True, slots=True)
class TextSide:
    """What a file says besides its weights."""

    tokenizer: HFTokenizer
    eos_ids: frozenset[int]
    facts: ModelFacts


def write_text_side(header: Header, directory: Path) -> None:
    """Write the tokenizer and the facts of a GGUF file into an existing directory.

    Raises CheckpointError for a file whose tokenizer transformers does not read.
    """
    path = header.path
    tokenizer = read_tokenizer(header)
    tokenizer.save_pretrained(directory)
    config = _config(path)
    facts = {"eos_ids": sorted(end_ids(None, config, tokenizer)), "model": _facts(header, config)}
    (directory / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def read_text_side(directory: Path) -> TextSide:
    """What `write_text_side` wrote."""
    facts = json.loads((directory / _FACTS).read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return TextSide(HFTokenizer(tokenizer), frozenset(facts["eos_ids"]), facts["model"])


def is_written(directory: Path) -> bool:
    """Whether `write_text_side` has written to a directory, which then holds all of it."""
    return (directory / _FACTS).exists()


def _config(path: Path) -> Any | None:
    """The configuration that transformers makes of the file; None where it does not know the architecture."""
    try:
        return transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # as above
        log.debug("transformers makes no configuration of %s: %s", path, error)
        return None


def _facts(header: Header, config: Any | None) -> ModelFacts:
    """What `backbone.describe` would say of the dequantised model, as far as the file tells."""
    facts: ModelFacts = {
        "num_layers": header.number("block_count") or 0,
        "hidden_size": header.number("embedding_length") or 0,
        "norms": [],
    }
    embeddings = header.tensors.get("token_embd.weight")
    if embeddings is not None:
        facts["vocab_size"] = embeddings.shape[0]
    if config is None:
        facts["architecture"] = header.architecture
        return facts
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    facts["architecture"] = type(module).__name__
    if header.architecture not in _SHIFTED:
        facts["norms"] = _norms(header, [name for name, _ in norm_weights(module)])
    return facts


def _norms(header: Header, names: list[str]) -> list[float]:
    """Means of some norms, as `backbone.describe` picks them; empty where the file does not hold one of them."""
    import gguf

    kinds = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
    if header.architecture not in kinds:
        return []
    table = gguf.get_tensor_name_map(kinds[header.architecture], header.number("block_count") or 0)
    weights = [header.vector(table.get_name(name, try_suffixes=(".weight",)) or "") for name in names]
    if any(weight is None for weight in weights):
        return []
    means = [round(float(weight.mean()), 6) for weight in weights if weight is not None]
    return means[:: max(1, len(means) // 8)]
