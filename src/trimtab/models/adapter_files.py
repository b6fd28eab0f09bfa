"""LoRA adapters as files: peft's format, read and written without peft."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trimtab.documents import read_json
from trimtab.errors import CheckpointError

Pairs = dict[str, tuple[Tensor, Tensor]]
"""Module name -> A [r, in] and B [out, r], float32, the scale folded into B."""

_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the adapter",
    "use_qalora": "QA-LoRA",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
}
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")


def read(directory: Path) -> Pairs:
    """The pairs of `adapter_config.json` and `adapter_model.safetensors`. Raises CheckpointError."""
    config, tensors = _files(directory)
    _check_config(config, directory)
    return _pairs(tensors, config, directory)


def read_with_head(directory: Path, head: str) -> tuple[Pairs, Tensor]:
    """The pairs, and the weight of the one module that was saved whole beside them: `head`, float32.

    Raises CheckpointError where there is none or another.
    """
    config, tensors = _files(directory)
    if config.get("modules_to_save") != [head]:
        raise CheckpointError(
            f"{directory} holds an adapter without a trained {head!r}, so its rewards would be random. Accepted: what "
            "`trimtab train reward` wrote."
        )
    weight = tensors.pop(f"base_model.model.{head}.weight", None)
    if weight is None or not bool(torch.isfinite(weight).all()):
        raise CheckpointError(f"{directory}: the weights of {head!r} are missing or not finite. Train it again.")
    config = {**config, "modules_to_save": None}
    _check_config(config, directory)
    return _pairs(tensors, config, directory), weight.float()


def _files(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = read_json((directory / "adapter_config.json").read_text(encoding="utf-8"))
        with safetensors.safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
            return config, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{directory} does not load as an adapter ({error}). It needs adapter_config.json and "
            "adapter_model.safetensors, both whole. Train or download it again."
        ) from error


def write(directory: Path, pairs: Pairs, *, base_name: str) -> None:
    """Write pairs into an existing directory; alpha equals the rank, so that peft scales by 1."""
    ranks = {name: int(down.shape[0]) for name, (down, _) in pairs.items()}
    rank = max(ranks.values())
    other = {name: own for name, own in ranks.items() if own != rank}
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
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    safetensors.torch.save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _check_config(config: Mapping[str, Any], directory: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{directory} holds a {kind} adapter. Accepted: LORA. Merge it and load it as a model.")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f"{directory} uses {what} ({key}), which cannot run row by row. Merge it into its base with peft's "
                "merge_and_unload() and load the result as a model."
            )
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{directory} trains biases (bias={config['bias']!r}). Accepted: none. Merge it first.")


def _pairs(tensors: Mapping[str, Tensor], config: Mapping[str, Any], directory: Path) -> Pairs:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise CheckpointError(f"{directory} holds {key}, which is no LoRA weight. Accepted: lora_A and lora_B.")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{directory}: {key} holds values that are not finite. Train the guide again.")
        sides.setdefault(match["module"], {})[match["side"]] = tensor.float()
    if not sides or any(set(pair) != {"A", "B"} for pair in sides.values()):
        raise CheckpointError(f"{directory} holds no complete pair of lora_A and lora_B weights.")
    return {name: (pair["A"], pair["B"] * _scale(name, pair["A"].shape[0], config)) for name, pair in sides.items()}


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha = float(config.get("lora_alpha", rank))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
