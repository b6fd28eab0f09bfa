"""What peft's `adapter_config.json` says of a LoRA adapter, read by what is known to be neutral.

An adapter is W x + s·B(A x) on an unchanged base. A key whose every value leaves that so (`_FREE`), or whose value
does (`_NEUTRAL`), is read past; any other key that is set is refused by name, those of later versions of peft included.
A key that is not known counts as set unless it is null, false or empty. Which layers an adapter is of, and s, are read
from the rest (`AdapterConfig`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.documents import read_json
from trimtab.errors import CheckpointError

CONFIG_FILE = "adapter_config.json"

_READ = frozenset({
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
})  # fmt: skip
_FREE = frozenset({
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    "lora_dropout",  # acts in training alone
    "fan_in_fan_out",  # how the base stores a weight, which its layer knows
    "runtime_config",  # peft itself does not read it from a file
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),  # peft reads one with its `init_lora_weights`
    "megatron_core",  # read with `megatron_config`
    "qalora_group_size",  # read with `use_qalora`
})  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal", "mica"),
}
"""Values, beside null, false and empty ones. Of the initialisations: those that leave the base's weights alone."""
_MEANING = {
    "alora_invocation_tokens": "an adapter that acts in part of the text (activated LoRA)",
    "arrow_config": "adapters that are chosen token by token (Arrow)",
    "bias": "biases that were trained beside it",
    "ensure_weight_tying": "adapters that are tied between layers",
    "init_lora_weights": "an initialisation that is not known to leave the base's weights as they are",
    "kasa_config": "KaSA, which changes the base's weights",
    "layer_replication": "replicated layers",
    "lora_bias": "a bias in B",
    "megatron_config": "Megatron's layers",
    "modules_to_save": "whole modules beside the adapter",
    "monteclora_config": "MonteCLoRA, which samples its weights",
    "target_parameters": "an adapter of bare parameters, such as fused experts",
    "trainable_token_indices": "trained token embeddings",
    "use_bdlora": "block-diagonal LoRA",
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "velora_config": "VeLoRA",
}
_NEVER_MERGED = ("alora_invocation_tokens", "arrow_config", "monteclora_config")
MERGE = "Merge it into its base with peft's merge_and_unload() and load the result as a model."


@dataclass(frozen=True, slots=True)
class Targets:
    """Which layers peft adapts, as its configuration names them: endings of names, or one pattern for whole names."""

    names: frozenset[str] | str
    excluded: frozenset[str] | str = frozenset()
    layers: frozenset[int] | None = None
    """Numbers of blocks, for names that are endings."""
    patterns: tuple[str, ...] = ()
    """What comes before the number of a block; none: anything."""

    def match(self, name: str) -> bool:
        """Whether a layer of this name is adapted."""
        if _named(name, self.excluded):
            return False
        if isinstance(self.names, str) or name in self.names or self.layers is None:
            return _named(name, self.names)
        return _named(name, self.names) and block_of(name, self.patterns) in self.layers


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of a configuration the numbers depend on."""

    rank: int | None
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool
    targets: Targets | None
    """None where peft would choose by the model's type."""

    def rank_of(self, layer: str) -> int | None:
        """r of a layer; None where the file says nothing of it."""
        rank = _by_pattern(self.rank_pattern, layer, self.rank)
        return None if rank is None else int(rank)

    def scale(self, layer: str, rank: int) -> float:
        """s of a layer: α/r, or α/√r where the adapter is rank-stabilised (arXiv 2312.03732)."""
        alpha = float(_by_pattern(self.alpha_pattern, layer, self.alpha) or 0.0)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank


def block_of(name: str, patterns: Sequence[str] = ()) -> int | None:
    """The number of the block that a layer belongs to: the first one in its name, after one of some patterns."""
    before = "|".join(f"(?:{pattern})" for pattern in patterns) or r"[^.]+"
    start = r"(?:.*?\.)?" if patterns else r".*?\."
    found = re.match(rf"{start}(?:{before})\.(\d+)\.", name)
    return None if found is None else int(found[1])


def read_config(directory: Path, *, whole: Iterable[str] = ()) -> AdapterConfig:
    """The configuration in a directory; `whole` names the modules that are expected to be saved whole beside it.

    Raises CheckpointError for a file that does not load, and for a key that is set to what is not known to be neutral.
    """
    try:
        config = read_json((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(directory, str(error)) from error
    if not isinstance(config, dict):
        raise _broken(directory, f"{CONFIG_FILE} holds no mapping")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{directory} holds a {kind} adapter. Accepted: LORA. Merge it and load it as a model.")
    check_neutral({key: value for key, value in config.items() if key != "modules_to_save" or not whole}, directory)
    saved = config.get("modules_to_save") or []
    if list(whole) and sorted(saved) != sorted(whole):
        raise CheckpointError(
            f"{directory} holds an adapter without a trained {', '.join(whole)!r}, so its numbers would be random: "
            f"beside the adapter it saves {saved or 'nothing'}. Accepted: what `trimtab train reward` wrote."
        )
    return _parsed(config, directory, saved)


def check_neutral(config: Mapping[str, Any], where: object) -> None:
    """Raise CheckpointError for a key that is set to what is not known to leave an adapter W x + s·B(A x)."""
    for key, value in config.items():
        if key in _READ or key in _FREE or value is None or value is False or value in ("", [], {}):
            continue
        if any(value is one or (isinstance(value, str) and value == one) for one in _NEUTRAL.get(key, ())):
            continue
        raise CheckpointError(
            f"{where} sets {key} to {json.dumps(value)[:80]}: {_MEANING.get(key, 'not known to this version')}. "
            f"Accepted are adapters that add B(A x) to an unchanged base's layers, row by row. "
            f"{'Train a plain one.' if key in _NEVER_MERGED else MERGE}"
        )


def _parsed(config: Mapping[str, Any], directory: Path, saved: Sequence[str]) -> AdapterConfig:
    try:
        rank = config.get("r")
        alpha = float(config.get("lora_alpha", 8))  # peft's default
        ranks, alphas = (_numbers(config.get(key)) for key in ("rank_pattern", "alpha_pattern"))
        finite = all(map(math.isfinite, (alpha, *ranks.values(), *alphas.values())))
        known = AdapterConfig(
            None if rank is None else int(rank),
            alpha,
            ranks,
            alphas,
            bool(config.get("use_rslora")),
            _targets(config, saved),
        )
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise _broken(directory, f"a value in {CONFIG_FILE} cannot be read: {error}") from error
    if not finite:
        raise _broken(directory, f"a scale in {CONFIG_FILE} is not finite")
    return known


def _numbers(patterns: Any) -> dict[str, float]:
    """Patterns of names -> numbers. Raises AttributeError, TypeError, ValueError or re.error for anything else."""
    found = {str(pattern): float(value) for pattern, value in (patterns or {}).items()}
    for pattern in found:
        re.compile(pattern)
    return found


def _targets(config: Mapping[str, Any], saved: Sequence[str]) -> Targets | None:
    names, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    if not names or (isinstance(names, str) and names.lower() == "all-linear"):
        return None
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    numbers = [layers] if isinstance(layers, int) else layers
    return Targets(
        names if isinstance(names, str) else frozenset(map(str, names)),
        excluded if isinstance(excluded, str) else frozenset({*map(str, excluded), *saved}),
        frozenset(map(int, numbers)) if numbers else None,
        (patterns,) if isinstance(patterns, str) else tuple(map(str, patterns)),
    )


def _named(name: str, by: frozenset[str] | str) -> bool:
    """Whether a name is one of some endings, or is described by one pattern."""
    if isinstance(by, str):
        return re.fullmatch(by, name) is not None
    return any(name == ending or name.endswith(f".{ending}") for ending in by)


def _by_pattern(patterns: Mapping[str, float], layer: str, default: float | None) -> float | None:
    """The value of the first pattern that describes a layer's name or an ending of it."""
    for pattern, value in patterns.items():
        if re.match(rf"(?:.*\.)?(?:{pattern})$", layer):
            return value
    return default


def _broken(directory: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{directory} does not load as an adapter ({what}). It needs {CONFIG_FILE} and adapter_model.safetensors, both "
        "whole. Train or download it again."
    )
