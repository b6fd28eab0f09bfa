"""A preference-aware autoregressive reward model: one guide for k objectives, whose dial is a vector.

PARM (Lin et al., ICML 2025, arXiv 2505.06274) conditions one autoregressive reward model on the preference vector p,
non-negative and adding up to 1, through a bilinear adapter of every adapted weight:

    ΔW(p) = s · (B₁ W₁ A₁ + B₂ (Σ_k p_k W₂ₖ) A₂)

At a fixed p that is an ordinary LoRA with A = [A₁; A₂] and B = s · [B₁ W₁, B₂ Σ_k p_k W₂ₖ], so `PARM.at(p)` is a guide
like any other: it shares the base's forward pass, has a weight, and one decoder holds as many vectors as one likes.

Where it differs from the paper's released code: the vector is not a state of the weights, so rows of one batch may have
different ones; weights are never renormalised; what `training.parm` does differently stands there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trimtab.core import Prompt
from trimtab.errors import OptionError
from trimtab.guides.arm import Adapter, AdapterARM

_TOLERANCE = 1e-6


class PreferenceAdapter(Protocol):
    """Weights that turn a base into another language model for each preference vector."""

    def at(self, preference: tuple[float, ...]) -> Adapter:
        """The adapter of one vector that was checked."""

    def save(self, directory: Path) -> None: ...


@dataclass(frozen=True)
class PARM:
    """All guides of one preference-aware reward model: `at` gives the one of a preference vector."""

    objectives: tuple[str, ...]
    """Their names, in the order of the vector's numbers."""
    adapter: PreferenceAdapter

    def at(
        self,
        preference: Sequence[float],
        *,
        weight: float = 1.0,
        prompt: Prompt | Callable[[Prompt], Prompt] | None = None,
    ) -> AdapterARM:
        """The guide that weighs the objectives so. Raises OptionError for an invalid vector (`check_preference`).

        `weight` and `prompt` are those of `guides.arm.ARM`.
        """
        vector = check_preference(preference, self.objectives)
        return AdapterARM(self.adapter.at(vector), weight=weight, prompt=prompt)

    def corners(self) -> dict[str, tuple[float, ...]]:
        """For each objective the vector that asks for nothing else."""
        return {name: corner(index, len(self.objectives)) for index, name in enumerate(self.objectives)}

    def save_files(self, directory: Path) -> None:
        """Write the files into an existing directory."""
        self.adapter.save(directory)


def corner(index: int, num_objectives: int) -> tuple[float, ...]:
    """The vector that asks for one objective alone."""
    return tuple(float(position == index) for position in range(num_objectives))


def middle(num_objectives: int) -> tuple[float, ...]:
    """The vector that asks for all objectives alike."""
    return (1 / num_objectives,) * num_objectives


def check_preference(preference: Sequence[float], objectives: Sequence[str]) -> tuple[float, ...]:
    """The vector as floats: one for each objective, none negative, adding up to 1 (within 1e-6). Raises OptionError."""
    order = ", ".join(objectives)
    accepted = f"Give {len(objectives)} numbers of at least 0 that add up to 1, in the order {order}."
    if isinstance(preference, str) or len(preference) != len(objectives):
        count = f"{preference!r}" if isinstance(preference, str) else f"of length {len(preference)}"
        raise OptionError(f"The preference is {count}; this guide weighs {len(objectives)} objectives. {accepted}")
    vector = tuple(float(number) for number in preference)
    for name, number in zip(objectives, vector, strict=True):
        if not (math.isfinite(number) and number >= 0):
            raise OptionError(f"The preference for {name} is {number:g}. {accepted}")
    if abs(sum(vector) - 1) > _TOLERANCE:
        raise OptionError(f"The preference {_listed(vector)} adds up to {sum(vector):g}. {accepted}")
    return vector


def _listed(vector: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in vector)
