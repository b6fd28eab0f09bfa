"""LoRA adapters applied row by row, without touching the base's weights.

W x + s·B(A x) (Hu et al., arXiv 2106.09685). A forward hook on each adapted layer adds the low-rank term to the rows of
the batch that asked for it, so one batch mixes the base and any number of adapters, quantised bases included. Which
rows run which adapter is thread-local and lasts for one forward pass: nothing global is switched, and an exception
leaves nothing switched on.

Where it differs from peft: nothing is wrapped or switched; DoRA, bias and embedding adapters are refused.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from trimtab.core import LanguageModel, ModelSession
from trimtab.errors import BaseMismatchError, CheckpointError, VocabularyMismatchError
from trimtab.models.trunk import RowAdapter

_active = threading.local()
_hooked: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the adapter",
    "use_qalora": "QA-LoRA",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
}
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")


@runtime_checkable
class AdaptableModel(LanguageModel, Protocol):
    """A language model whose layers can be adapted row by row; `models.hf.HFModel` is one."""

    @property
    def module(self) -> Any:
        """The network, an `nn.Module` whose modules' names adapters refer to."""

    def describe(self) -> dict[str, Any]:
        """What tells this base from another."""

    def open_rows(self, beside: ModelSession | None, adapter: RowAdapter | None) -> ModelSession:
        """A session whose rows run with `adapter`."""


class LoRA:
    """The tensors of a LoRA adapter: for each adapted module, A [r, in] and B [out, r], the scale folded into B."""

    def __init__(
        self,
        pairs: Mapping[str, tuple[Tensor, Tensor]],
        *,
        base: Mapping[str, Any],
        vocabulary: Mapping[str, Any],
        source: Path | None = None,
    ) -> None:
        self.pairs = dict(pairs)
        self.base = dict(base)
        self.vocabulary = dict(vocabulary)
        self.source = source

    @staticmethod
    def load(directory: Path, card: Mapping[str, Any]) -> LoRA:
        """Read peft's format (`adapter_config.json`, `adapter_model.safetensors`). Raises CheckpointError."""
        try:
            config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
            with safetensors.safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"{directory} does not load as an adapter ({error}). It needs adapter_config.json and "
                "adapter_model.safetensors, both whole. Train or download it again."
            ) from error
        _check_config(config, directory)
        pairs = _pairs(tensors, config, directory)
        return LoRA(pairs, base=card.get("base", {}), vocabulary=card.get("vocabulary", {}), source=directory)

    def save(self, directory: Path) -> None:
        """Copy the adapter's files into an existing directory."""
        if self.source is None:
            raise CheckpointError("This adapter was not loaded from a directory, so there are no files to copy.")
        for path in self.source.iterdir():
            if path.is_file():
                shutil.copy2(path, directory / path.name)

    def on(self, base: LanguageModel) -> AdaptedModel:
        """The adapted model. Raises BaseMismatchError or VocabularyMismatchError where it does not fit."""
        if not isinstance(base, AdaptableModel):
            raise BaseMismatchError(
                f"A LoRA adapter changes the weights of a transformers model; this base is a {type(base).__name__}. "
                "Give the model it was trained on: load_guide(path, model=load_model(...))."
            )
        self._check(base)
        return AdaptedModel(base, self)

    def _check(self, base: AdaptableModel) -> None:
        own, theirs = self.base, base.describe()
        where = f"Load it on its own base: load_guide(path, model=load_model({own.get('name', 'BASE')!r}))."
        for key in ("architecture", "num_layers", "hidden_size"):
            if key in own and own[key] != theirs[key]:
                raise BaseMismatchError(
                    f"This adapter was trained on {own.get('name')} ({key} {own[key]}); the base here, "
                    f"{theirs['name']}, has {key} {theirs[key]}. {where}"
                )
        fingerprint = self.vocabulary.get("fingerprint")
        if fingerprint and base.tokenizer is not None and base.tokenizer.fingerprint != fingerprint:
            raise VocabularyMismatchError(
                f"This adapter was trained with another vocabulary ({self.vocabulary.get('size')} tokens) than the "
                f"base's ({len(base.tokenizer.tokens)} tokens); they differ in content. {where}"
            )
        norms = own.get("norms", [])
        if norms and not (
            len(norms) == len(theirs["norms"])
            and all(math.isclose(a, b, rel_tol=5e-3, abs_tol=1e-4) for a, b in zip(norms, theirs["norms"], strict=True))
        ):
            raise BaseMismatchError(
                f"This adapter was trained on {own.get('name')}; the base here has the same shape but other weights. "
                f"{where}"
            )
        self._check_shapes(base, where)

    def _check_shapes(self, base: AdaptableModel, where: str) -> None:
        modules = dict(base.module.named_modules())
        for name, (down, up) in self.pairs.items():
            module = modules.get(name)
            weight = getattr(module, "weight", None)
            if module is None or weight is None:
                raise BaseMismatchError(f"This adapter changes {name}, which the base does not have. {where}")
            shape = _features(module)
            if shape is not None and shape != (down.shape[1], up.shape[0]):
                raise BaseMismatchError(
                    f"This adapter expects {name} to map {down.shape[1]} to {up.shape[0]} features; the base's maps "
                    f"{shape[0]} to {shape[1]}. {where}"
                )


class AdaptedModel:
    """A base with a LoRA adapter: a language model of its own that shares the base's weights and forward passes."""

    def __init__(self, base: AdaptableModel, adapter: LoRA) -> None:
        self._base = base
        self.tokenizer = base.tokenizer
        self.vocab_size = base.vocab_size
        self.hidden_size = base.hidden_size
        self.eos_ids = base.eos_ids
        self._rows = RowLoRA(base.module, adapter.pairs)

    @property
    def max_length(self) -> int | None:
        return self._base.max_length

    @property
    def device(self) -> torch.device:
        return self._base.device

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        return self._base.open_rows(beside, self._rows)


class RowLoRA:
    """An adapter in the base's dtype and on its devices, keyed by module, ready to be added to some rows."""

    def __init__(self, root: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        modules = dict(root.named_modules())
        dtype = getattr(root, "dtype", torch.float32)
        self._pairs: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        for name, (down, up) in pairs.items():
            module = modules[name]
            device = next(module.parameters()).device
            self._pairs[module] = (
                down.to(device, dtype).t().contiguous(),
                up.to(device, dtype).t().contiguous(),
            )
            _hook(module)

    def add(self, module: nn.Module, x: Tensor, output: Tensor, rows: list[int]) -> None:
        """output[rows] += B A x[rows], in place. x [B, Q, in], output [B, Q, out]."""
        pair = self._pairs.get(module)
        if pair is None:
            return
        down, up = pair
        first, last = rows[0], rows[-1] + 1
        if last - first == len(rows):
            part, target = x[first:last], output[first:last]
            target.view(-1, target.shape[-1]).addmm_(part.reshape(-1, part.shape[-1]) @ down, up)
            return
        index = torch.tensor(rows, device=x.device)
        output.index_add_(0, index, (x[index] @ down @ up).to(output.dtype))


@contextmanager
def routed(adapters: Sequence[tuple[RowAdapter, list[int]]]) -> Iterator[None]:
    """For the forward passes inside, in this thread only: which batch rows run which adapter."""
    previous = getattr(_active, "routing", None)
    _active.routing = adapters or None
    try:
        yield
    finally:
        _active.routing = previous


def _hook(module: nn.Module) -> None:
    if module in _hooked:
        return
    _hooked.add(module)
    module.register_forward_hook(_add_rows)


def _add_rows(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    routing = getattr(_active, "routing", None)
    if routing is not None:
        for adapter, rows in routing:
            adapter.add(module, args[0], output, rows)


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


def _pairs(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], directory: Path
) -> dict[str, tuple[Tensor, Tensor]]:
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


def _features(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer; None where a quantised one hides it."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":  # transformers' GPT-2 layer: weight [in, out]
        weight = module.weight
        assert isinstance(weight, Tensor)
        return int(weight.shape[0]), int(weight.shape[1])
    return None
