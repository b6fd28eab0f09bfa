"""LoRA adapters as files: peft's format, read and written without peft."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trimtab.errors import CheckpointError
from trimtab.models.adapters.config import CONFIG_FILE, MERGE, AdapterConfig, Targets, read_config

WEIGHTS_FILE = "adapter_model.safetensors"

Pairs = dict[str, tuple[Tensor, Tensor]]
"""Module name -> A [r, in] and B [out, r], float32, the scale folded into B."""

_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")
_OTHERS = {
    r"lora_embedding_[AB]": "an adapter of token embeddings",
    r"lora_magnitude_vector": "DoRA's magnitudes",
    r"lora_[AB](\.[^.]+)?\.bias$": "a bias in B",
    r"\.base_layer\.": "of bare parameters, such as fused experts, or of a layer that was saved whole",
}


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What a directory holds."""

    pairs: Pairs
    targets: Targets | None
    """The layers that the configuration names; None where it names none."""


def read(directory: Path) -> Pairs:
    """The pairs of `adapter_config.json` and `adapter_model.safetensors`. Raises CheckpointError."""
    return read_files(directory).pairs


def read_files(directory: Path) -> AdapterFiles:
    """The pairs, and the layers that the configuration names. Raises CheckpointError."""
    config = read_config(directory)
    return AdapterFiles(_pairs(_tensors(directory), config, directory), config.targets)


def read_with_head(directory: Path, head: str) -> tuple[AdapterFiles, Tensor]:
    """The pairs, and the weight of the one module that was saved whole beside them: `head`, float32.

    Raises CheckpointError where there is none or another.
    """
    config, tensors = read_config(directory, whole=[head]), _tensors(directory)
    weight = tensors.pop(f"base_model.model.{head}.weight", None)
    if weight is None or not bool(torch.isfinite(weight).all()):
        raise CheckpointError(f"{directory}: the weights of {head!r} are missing or not finite. Train it again.")
    return AdapterFiles(_pairs(tensors, config, directory), config.targets), weight.float()


def write(directory: Path, pairs: Pairs, *, base_name: str) -> None:
    """Write pairs into an existing directory; alpha equals the rank, so that peft scales by 1."""
    ranks = {name: int(down.shape[0]) for name, (down, _) in pairs.items()}
    rank = max(ranks.values())
    other = {re.escape(name): each for name, each in ranks.items() if each != rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "bias": "none",
        "target_modules": sorted(pairs),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": other,
        "alpha_pattern": other,
    }
    tensors = {}
    for name, (down, up) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.contiguous()
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    safetensors.torch.save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def _tensors(directory: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{directory} does not load as an adapter ({error}). It needs {CONFIG_FILE} and {WEIGHTS_FILE}, both "
            "whole. Train or download it again."
        ) from error


def _pairs(tensors: Mapping[str, Tensor], config: AdapterConfig, directory: Path) -> Pairs:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None or ".base_layer" in match["module"]:
            raise CheckpointError(f"{directory} holds {key}, {_what(key)}. Accepted: lora_A and lora_B. {MERGE}")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{directory}: {key} holds values that are not finite. Train the guide again.")
        pair = sides.setdefault(match["module"], {})
        if match["side"] in pair:
            raise CheckpointError(f"{directory} holds {key} twice, under two adapters' names. Save one of them.")
        pair[match["side"]] = tensor.float()
    if not sides or any(set(pair) != {"A", "B"} for pair in sides.values()):
        raise CheckpointError(f"{directory} holds no complete pair of lora_A and lora_B weights.")
    return {name: _pair(name, pair["A"], pair["B"], config, directory) for name, pair in sides.items()}


def _what(key: str) -> str:
    """Which kind of weight a key of no pair is of."""
    kinds = (what for pattern, what in _OTHERS.items() if re.search(pattern, key))
    return next(kinds, "which is not a LoRA weight")


def _pair(name: str, down: Tensor, up: Tensor, config: AdapterConfig, directory: Path) -> tuple[Tensor, Tensor]:
    """A [r, in] and s·B [out, r] of a layer."""
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or not len(down):
        raise CheckpointError(
            f"{directory}: lora_A and lora_B of {name} are {list(down.shape)} and {list(up.shape)}; those of a linear "
            f"layer are [r, in] and [out, r]. {MERGE}"
        )
    rank = config.rank_of(name)
    if rank is not None and rank != len(down):
        raise CheckpointError(
            f"{directory}: lora_A of {name} has rank {len(down)}, and {CONFIG_FILE} says {rank}, which is another "
            "scale. Give the configuration that the weights were saved with."
        )
    return down, up * config.scale(name, len(down))
