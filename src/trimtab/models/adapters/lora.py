"""LoRA adapters applied row by row, without touching the base's weights.

W x + s·B(A x) (Hu et al., arXiv 2106.09685). A forward hook on each adapted layer adds the low-rank term to the rows of
the batch that asked for it (`row_lora`), so one batch mixes the base and any number of adapters, quantised bases
included.

Where it differs from peft: nothing is wrapped or switched; whatever is not W x + s·B(A x) on the unchanged base is
refused by name (`adapter_config`), and so is a layer whose input does not hold the rows of a batch (`row_layers`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trimtab.core import LanguageModel, ModelSession, Tokenizer
from trimtab.errors import BaseMismatchError, OptionError, VocabularyMismatchError
from trimtab.models.adapters import files as adapter_files
from trimtab.models.adapters.config import Targets
from trimtab.models.adapters.row_lora import RowLoRA
from trimtab.models.forward.grouping import RowAdapter
from trimtab.models.trained_on import UNKNOWN, ModelFacts, TrainedOn, VocabularyFacts


@runtime_checkable
class AdaptableModel(LanguageModel, Protocol):
    """A language model whose layers can be adapted row by row; `models.hf.HFModel` is one."""

    @property
    def module(self) -> Any:
        """The network, an `nn.Module` whose modules' names adapters refer to."""

    def describe(self) -> ModelFacts:
        """What tells this base from another."""

    def open_rows(self, beside: ModelSession | None, adapter: RowAdapter | None) -> ModelSession:
        """A session whose rows run with `adapter`."""


@runtime_checkable
class AdaptsItself(LanguageModel, Protocol):
    """A language model that applies adapters in its own way; `models.llama.model.LlamaModel` is one."""

    def describe(self) -> ModelFacts:
        """What tells this base from another."""

    def check_layers(self, adapter: LoRA) -> None:
        """Raise BaseMismatchError or CompatibilityError for an adapter of layers that are not, or not so, here."""

    def adapted(self, adapter: LoRA) -> LanguageModel:
        """The adapted model, of an adapter that was checked."""


class LoRA:
    """The tensors of a LoRA adapter: for each adapted module, A [r, in] and B [out, r], the scale folded into B."""

    def __init__(
        self,
        pairs: Mapping[str, tuple[Tensor, Tensor]],
        *,
        base: ModelFacts,
        vocabulary: VocabularyFacts,
        source: Path | None = None,
        targets: Targets | None = None,
    ) -> None:
        self.pairs = dict(pairs)
        self.base = base
        self.vocabulary = vocabulary
        self.source = source
        self.targets = targets

    @staticmethod
    def load(directory: Path, trained_on: TrainedOn = UNKNOWN) -> LoRA:
        """Read peft's format (`adapter_config.json`, `adapter_model.safetensors`). Raises CheckpointError."""
        return LoRA.of_files(adapter_files.read_files(directory), directory, trained_on)

    @staticmethod
    def of_files(files: adapter_files.AdapterFiles, directory: Path, trained_on: TrainedOn) -> LoRA:
        """The adapter that was read from a directory."""
        base, vocabulary = trained_on.base, trained_on.vocabulary
        return LoRA(files.pairs, base=base, vocabulary=vocabulary, source=directory, targets=files.targets)

    def save(self, directory: Path) -> None:
        """Write the adapter into an existing directory in peft's format; a loaded one's files are copied."""
        if self.source is None:
            adapter_files.write(directory, self.pairs, base_name=str(self.base.get("name", "")))
            return
        for path in self.source.iterdir():
            if path.is_file():
                shutil.copy2(path, directory / path.name)

    def on(self, base: LanguageModel) -> LanguageModel:
        """The adapted model.

        Raises BaseMismatchError or VocabularyMismatchError where it does not fit, CompatibilityError for a layer that
        cannot be adapted row by row.
        """
        self.check(base)
        return base.adapted(self) if isinstance(base, AdaptsItself) else AdaptedModel(_adaptable(base), self)

    def check(self, base: LanguageModel) -> None:
        """Raise BaseMismatchError or VocabularyMismatchError for a base that this adapter was not trained on."""
        if isinstance(base, AdaptsItself):
            self.check_trained_on(base.describe(), base.tokenizer)
            base.check_layers(self)
        else:
            adaptable = _adaptable(base)
            self.check_trained_on(adaptable.describe(), base.tokenizer)
            self._check_layers(adaptable)

    def check_trained_on(self, here: ModelFacts, tokenizer: Tokenizer | None) -> None:
        """Raise BaseMismatchError or VocabularyMismatchError unless a base is the one that this was trained on, as far
        as is known of both."""
        trained, where = self.base, _WHERE
        different = difference(trained, here)
        if different is not None and different != OTHER_WEIGHTS:
            raise BaseMismatchError(
                f"This adapter was trained on {trained.get('name')}; the base here, {here['name']}, has {different}. "
                f"{where}"
            )
        fingerprint = self.vocabulary.get("fingerprint")
        if fingerprint and tokenizer is not None and tokenizer.fingerprint != fingerprint:
            raise VocabularyMismatchError(
                f"This adapter was trained with another vocabulary ({self.vocabulary.get('size')} tokens) than the "
                f"base's ({len(tokenizer.tokens)} tokens); they differ in content. {where}"
            )
        if different is not None:
            raise BaseMismatchError(
                f"This adapter was trained on {trained.get('name')}; the base here, {here['name']}, has {different}. "
                f"{where}"
            )

    def _check_layers(self, base: AdaptableModel) -> None:
        where = _WHERE
        modules = dict(base.module.named_modules())
        for name, (down, up) in self.pairs.items():
            if name not in modules:
                raise BaseMismatchError(f"This adapter changes {name}, which the base does not have. {where}")
            shape = linear_shape(modules[name])
            if shape is None:
                raise BaseMismatchError(
                    f"This adapter changes {name}, which is a {type(modules[name]).__name__} here and no linear layer. "
                    f"{where}"
                )
            if shape != (down.shape[1], up.shape[0]):
                raise BaseMismatchError(
                    f"This adapter expects {name} to map {down.shape[1]} to {up.shape[0]} features; the base's maps "
                    f"{shape[0]} to {shape[1]}. {where}"
                )
        if self.targets is None:
            return
        without = [
            name
            for name, module in modules.items()
            if name not in self.pairs and self.targets.match(name) and linear_shape(module) is not None
        ]
        if without:
            raise BaseMismatchError(
                f"This adapter is of {len(without)} layers of which its file holds no weights (first: {without[0]}): "
                f"the file is not whole, or of another model. {where}"
            )


OTHER_WEIGHTS = "the same shape but other weights"
_WHERE = "An adapter runs on the model that it was trained on: name that one as the guide's base (guide_base)."


def _adaptable(base: LanguageModel) -> AdaptableModel:
    if not isinstance(base, AdaptableModel):
        raise BaseMismatchError(
            f"A LoRA adapter changes the weights of a transformers model; this base is a {type(base).__name__}. "
            "Give the model that it was trained on as the guide's own base."
        )
    return base


def difference(base: ModelFacts, other: ModelFacts) -> str | None:
    """What another model has that the base of an adapter has not; None where nothing that is known tells them apart.

    `other` is what `Backbone.describe` says of the other model.
    """
    known, here = dict[str, object](base), dict[str, object](other)
    for key in ("architecture", "num_layers", "hidden_size"):
        if key in known and known[key] != here[key]:
            return f"{key} {here[key]} and not {known[key]}"
    return None if _same_norms(base.get("norms", []), other["norms"]) else OTHER_WEIGHTS


def average(adapters: Sequence[LoRA], weights: Sequence[float]) -> LoRA:
    """The adapter whose change to each layer is ΔW = Σ λ_i B_i A_i, exactly: the ranks are put side by side.

    Rewarded Soups (Ramé et al., NeurIPS 2023, arXiv 2306.04488) for LoRA policies of one base. Adapters may differ in
    rank, scale and layers; one of weight 0 is left out. The weights are taken as they are, whatever their sum.

    Raises OptionError for weights that cannot be used, BaseMismatchError and VocabularyMismatchError for adapters that
    do not belong together.
    """
    kept = _parts(adapters, weights)
    sides: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for adapter, weight in kept:
        for name, (down, up) in adapter.pairs.items():
            downs, ups = sides.setdefault(name, ([], []))
            downs.append(down)
            ups.append(weight * up)
    pairs = {name: (torch.cat(downs), torch.cat(ups, dim=1)) for name, (downs, ups) in sides.items()}
    return _mixed(pairs, adapters)


def average_factors(adapters: Sequence[LoRA], weights: Sequence[float]) -> LoRA:
    """The adapter with A = Σ λ_i A_i and B = Σ λ_i B_i, whose ΔW = B A is not the average of the adapters' ΔW.

    One paper's code averages so; `average` is what averaging the policies' weights means. Adapters must have the same
    layers and ranks (OptionError). Else as `average`.
    """
    kept = _parts(adapters, weights)
    shapes = [{name: down.shape for name, (down, _) in adapter.pairs.items()} for adapter, _ in kept]
    if any(other != shapes[0] for other in shapes[1:]):
        raise OptionError(
            "These adapters differ in their layers or ranks, so their factors cannot be averaged. "
            "Average the deltas, which always works."
        )
    pairs = {
        name: (
            torch.stack([weight * adapter.pairs[name][0] for adapter, weight in kept]).sum(dim=0),
            torch.stack([weight * adapter.pairs[name][1] for adapter, weight in kept]).sum(dim=0),
        )
        for name in shapes[0]
    }
    return _mixed(pairs, adapters)


def check_weights(weights: Sequence[float], num_parts: int) -> None:
    """Raise OptionError unless these are the weights of a soup: one for each part, none negative, not all 0."""
    if len(weights) != num_parts or not weights:
        raise OptionError(f"There are {num_parts} adapters or models and {len(weights)} weights; give each its own.")
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise OptionError(f"A weight is {weight:g}; give finite numbers of at least 0.")
    if not any(weights):
        raise OptionError("Every weight is 0, which is the base itself. Give at least one above 0.")


def _mixed(pairs: Mapping[str, tuple[Tensor, Tensor]], adapters: Sequence[LoRA]) -> LoRA:
    """The adapter with these pairs and what is known of the adapters' base; plain peft adapters know nothing of it."""
    base = next((adapter.base for adapter in adapters if adapter.base), ModelFacts())
    vocabulary = next((adapter.vocabulary for adapter in adapters if adapter.vocabulary), VocabularyFacts())
    return LoRA(pairs, base=base, vocabulary=vocabulary)


def _parts(adapters: Sequence[LoRA], weights: Sequence[float]) -> list[tuple[LoRA, float]]:
    """Adapters of one base with the weights that are not 0."""
    check_weights(weights, len(adapters))
    for number, adapter in enumerate(adapters[1:], 2):
        _check_alike(adapters[0], adapter, number)
    return [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if weight]


def _check_alike(first: LoRA, other: LoRA, number: int) -> None:
    way_out = "Average adapters that were trained on the same base."
    whose = [adapter.base.get("name", adapter.source) for adapter in (other, first)]
    names = f"Adapter {number} (of {whose[0]}) and the first (of {whose[1]})"
    known, here = dict[str, object](first.base), dict[str, object](other.base)
    for key in ("architecture", "num_layers", "hidden_size"):
        if key in known and key in here and known[key] != here[key]:
            raise BaseMismatchError(f"{names} have different bases: {key} {here[key]} and {known[key]}. {way_out}")
    if not _same_norms(first.base.get("norms", []), other.base.get("norms", [])):
        raise BaseMismatchError(f"{names} have bases of the same shape but of other weights. {way_out}")
    fingerprints = {adapter.vocabulary.get("fingerprint") for adapter in (first, other)} - {None}
    if len(fingerprints) > 1:
        raise VocabularyMismatchError(f"{names} were trained with other vocabularies. {way_out}")
    for name in first.pairs.keys() & other.pairs.keys():
        one, another = ((pair[0].shape[1], pair[1].shape[0]) for pair in (first.pairs[name], other.pairs[name]))
        if one != another:
            raise BaseMismatchError(
                f"{names} expect {name} to map {another[0]} to {another[1]} and {one[0]} to {one[1]} features. "
                f"{way_out}"
            )


def _same_norms(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two bases have the same norm weights; True where either is not known."""
    if not first or not second:
        return True
    near = (math.isclose(a, b, rel_tol=5e-3, abs_tol=1e-4) for a, b in zip(first, second, strict=False))
    return len(first) == len(second) and all(near)


class AdaptedModel:
    """A base with a LoRA adapter: a language model of its own that shares the base's weights and forward passes."""

    def __init__(self, base: AdaptableModel, adapter: LoRA) -> None:
        self._base = base
        self.tokenizer = base.tokenizer
        self.vocab_size = base.vocab_size
        self.num_embeddings = int(getattr(base, "num_embeddings", base.vocab_size))
        self.hidden_size = base.hidden_size
        self.eos_ids = base.eos_ids
        self._rows = RowLoRA(base, adapter.pairs)

    @property
    def max_length(self) -> int | None:
        return self._base.max_length

    @property
    def device(self) -> torch.device:
        return self._base.device

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        return self._base.open_rows(beside, self._rows)


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer, quantised ones included; None for any other module."""
    if type(module).__name__ == "Conv1D":  # transformers' GPT-2 layer: weight [in, out]
        weight = module.weight
        assert isinstance(weight, Tensor)
        return int(weight.shape[0]), int(weight.shape[1])
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(features[0], int) and isinstance(features[1], int):
        return features[0], features[1]
    return None
