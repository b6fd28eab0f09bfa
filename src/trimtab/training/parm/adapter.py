"""The bilinear adapter while it is trained: peft's LoRA, with the block matrix M(p) between its A and its B.

PARM (Lin et al., ICML 2025, arXiv 2505.06274): ΔW(p) = s · B M(p) A (`models.parm.core`). peft brings A, B, dropout,
the choice of layers and quantised bases; inside `Cores.inserted`, a forward hook on A multiplies by M(p).

Initialised as the paper's released code does it: A as peft's own, B = 0 (so ΔW is 0 at every p), W₁ and W₂ uniform with
the bounds 1/√r₁ and 1/r₂ of its Kaiming initialisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trimtab.models.adapters.bilinear import core

_PREFIX = "base_model.model."
_ADAPTER = "default"


class Cores(nn.Module):
    """W₁ and W₂ of every layer that a peft model adapts, and the preference vector that they are run at.

    The model's forward passes multiply by them inside `inserted`; outside it, the model is peft's.
    """

    def __init__(self, model: nn.Module, *, num_objectives: int, preference_rank: int, seed: int) -> None:
        super().__init__()
        self.num_objectives = num_objectives
        self._layers: dict[str, LoraLayer] = {
            name.removeprefix(_PREFIX): layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
        }
        self.shared = nn.ParameterList()
        self.per_objective = nn.ParameterList()
        generator = torch.Generator().manual_seed(seed)
        for layer in self._layers.values():
            down = layer.lora_A[_ADAPTER]
            rank = down.out_features - preference_rank
            for owner, bound, shape in (
                (self.shared, rank**-0.5, (rank, rank)),
                (self.per_objective, 1 / preference_rank, (num_objectives, preference_rank, preference_rank)),
            ):
                weight = torch.empty(shape).uniform_(-bound, bound, generator=generator)
                owner.append(nn.Parameter(weight.to(down.weight.device)))
        self._is_inserted = False
        self.run_at([1 / num_objectives] * num_objectives)

    @contextmanager
    def inserted(self) -> Iterator[None]:
        """Inside, forward passes multiply by M(p) between A and B. It may be entered again inside itself."""
        if self._is_inserted:
            yield
            return
        layers = enumerate(self._layers.values())
        handles = [layer.lora_A[_ADAPTER].register_forward_hook(self._between(index)) for index, layer in layers]
        self._is_inserted = True
        try:
            yield
        finally:
            self._is_inserted = False
            for handle in handles:
                handle.remove()

    def run_at(self, preference: Sequence[float]) -> None:
        """Run forward passes at a vector with one number for each objective, from now on."""
        self._preference = torch.tensor(list(preference), dtype=torch.float32, device=self.shared[0].device)

    @contextmanager
    def at(self, preference: Sequence[float]) -> Iterator[None]:
        """Inside, forward passes run at a vector."""
        before = self._preference
        self.run_at(preference)
        try:
            yield
        finally:
            self._preference = before

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """For each adapted layer A, B (without the scale), W1 and W2, as `models.parm.write` takes them."""
        return {
            name: {
                "A": layer.lora_A[_ADAPTER].weight,
                "B": layer.lora_B[_ADAPTER].weight,
                "W1": self.shared[index],
                "W2": self.per_objective[index],
            }
            for index, (name, layer) in enumerate(self._layers.items())
        }

    @property
    def scale(self) -> float:
        """s, the same for every layer."""
        (scale,) = {float(layer.scaling[_ADAPTER]) for layer in self._layers.values()}
        return scale

    def _between(self, index: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def multiply(_: nn.Module, inputs: object, output: Tensor) -> Tensor:
            preference = self._preference.to(self.shared[index].device)
            return nn.functional.linear(
                output, core(self.shared[index], self.per_objective[index], preference).to(output.dtype)
            )

        return multiply
