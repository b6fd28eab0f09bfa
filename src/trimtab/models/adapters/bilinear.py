"""The bilinear adapter of a preference-aware reward model, and the LoRA that it is at one preference vector.

PARM (Lin et al., ICML 2025, arXiv 2505.06274): ΔW(p) = s · (B₁ W₁ A₁ + B₂ (Σ_k p_k W₂ₖ) A₂). Here A = [A₁; A₂] and
B = [B₁, B₂] are kept together and the two bilinear forms are one block matrix M(p), so ΔW(p) = s · B M(p) A.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trimtab.errors import CheckpointError
from trimtab.models.adapters.lora import LoRA
from trimtab.models.trained_on import UNKNOWN, ModelFacts, TrainedOn, VocabularyFacts

PARM_FILE = "parm.safetensors"
_PARTS = ("A", "B", "W1", "W2")


def core(shared: Tensor, per_objective: Tensor, preference: Tensor) -> Tensor:
    """M(p) = [[W₁, 0], [0, Σ_k p_k W₂ₖ]]: [r₁, r₁], [k, r₂, r₂] and [k] give [r₁ + r₂, r₁ + r₂]."""
    mixed = (preference.to(per_objective)[:, None, None] * per_objective).sum(dim=0)
    matrix: Tensor = torch.block_diag(shared, mixed)  # type: ignore[no-untyped-call]
    return matrix


@dataclass(frozen=True, slots=True)
class Bilinear:
    """The tensors of one adapted module, the scale s folded into B."""

    down: Tensor
    """A [r₁ + r₂, in]."""
    up: Tensor
    """s · B [out, r₁ + r₂]."""
    shared: Tensor
    """W₁ [r₁, r₁]."""
    per_objective: Tensor
    """W₂ [k, r₂, r₂]."""

    def at(self, preference: Tensor) -> tuple[Tensor, Tensor]:
        """A [r, in] and s · B M(p) [out, r] of the LoRA that this is at a vector [k]."""
        return self.down, self.up @ core(self.shared, self.per_objective, preference)


class PreferenceLoRA:
    """Bilinear adapters of a base's modules; `at` gives the LoRA of one preference vector."""

    def __init__(
        self,
        modules: Mapping[str, Bilinear],
        *,
        base: ModelFacts,
        vocabulary: VocabularyFacts,
        source: Path | None = None,
    ) -> None:
        self.modules = dict(modules)
        self.base = base
        self.vocabulary = vocabulary
        self.source = source

    def at(self, preference: Sequence[float]) -> LoRA:
        """The LoRA at a vector with one number for each objective."""
        vector = torch.tensor(list(preference), dtype=torch.float32)
        pairs = {name: bilinear.at(vector) for name, bilinear in self.modules.items()}
        return LoRA(pairs, base=self.base, vocabulary=self.vocabulary)

    def save(self, directory: Path) -> None:
        """Copy the files into an existing directory."""
        if self.source is None:
            raise CheckpointError("This adapter was not loaded from a directory, so there are no files to copy.")
        for path in self.source.iterdir():
            if path.is_file():
                shutil.copy2(path, directory / path.name)

    @staticmethod
    def load(
        directory: Path, num_objectives: int, scale: float | None, trained_on: TrainedOn = UNKNOWN
    ) -> PreferenceLoRA:
        """The adapter that `write` wrote, with what `guide.json` says of it. Raises CheckpointError."""
        try:
            if not num_objectives or scale is None:
                raise ValueError("guide.json names no objectives (parm.objectives) or no scale (parm.scale)")
            tensors = safetensors.torch.load_file(directory / PARM_FILE)
        except (ValueError, OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"{directory} does not load as a preference-aware guide ({type(error).__name__}: {error}). It needs "
                f"guide.json and {PARM_FILE}, both whole. Train or download it again."
            ) from error
        modules = _modules(tensors, scale, num_objectives, directory)
        return PreferenceLoRA(modules, base=trained_on.base, vocabulary=trained_on.vocabulary, source=directory)


def write(directory: Path, modules: Mapping[str, Mapping[str, Tensor]], *, dtype: torch.dtype) -> None:
    """Write A, B (without the scale), W1 and W2 of each module into an existing directory."""
    tensors = {
        f"{name}.{part}": parts[part].detach().to("cpu", dtype).contiguous()
        for name, parts in modules.items()
        for part in _PARTS
    }
    safetensors.torch.save_file(tensors, directory / PARM_FILE, metadata={"format": "pt"})


def _modules(tensors: Mapping[str, Tensor], scale: float, num_objectives: int, directory: Path) -> dict[str, Bilinear]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, part = key.rpartition(".")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{directory}: {key} holds values that are not finite. Train the guide again.")
        parts.setdefault(module, {})[part] = tensor.float()
    if not parts:
        raise CheckpointError(f"{directory}: {PARM_FILE} holds no tensors. Train the guide again.")
    for name, tensors_of in parts.items():
        shapes = {part: tuple(tensor.shape) for part, tensor in tensors_of.items()}
        _check_shapes(name, shapes, num_objectives, directory)
    return {name: Bilinear(part["A"], part["B"] * scale, part["W1"], part["W2"]) for name, part in parts.items()}


def _check_shapes(name: str, shapes: Mapping[str, tuple[int, ...]], num_objectives: int, directory: Path) -> None:
    if set(shapes) == set(_PARTS) and len(shapes["A"]) == len(shapes["B"]) == 2:
        rank = shapes["A"][0]
        shared, per_objective = shapes["W1"][:1] or (0,), shapes["W2"][-1:] or (0,)
        good = {
            "B": (shapes["B"][0], rank),
            "W1": (*shared, *shared),
            "W2": (num_objectives, *per_objective, *per_objective),
        }
        if all(shapes[part] == shape for part, shape in good.items()) and shared[0] + per_objective[0] == rank:
            return
    raise CheckpointError(
        f"{directory}: the tensors of {name} have shapes {dict(shapes)}; accepted for {num_objectives} objectives: "
        f"A [r1 + r2, in], B [out, r1 + r2], W1 [r1, r1], W2 [{num_objectives}, r2, r2]. Train the guide again."
    )
