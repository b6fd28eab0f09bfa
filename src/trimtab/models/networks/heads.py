"""The output head of a causal model: what its own forward pass does with the states of its decoder.

A head is more than a linear layer: scales, soft caps, biases, a layer of its own before the vocabulary. So none of it
is known here. The model's forward pass is run as it stands, on a twin that shares every weight and has, in place of the
decoder, a part that gives back the states that it is handed.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models.networks.kinds import refusal


class Head:
    """Logits of states, by the model's own code. Raises CompatibilityError for a model without an output layer."""

    def __init__(self, module: Any, decoder: Any) -> None:
        self.output = module.get_output_embeddings()
        if self.output is None:
            raise refusal(module, "it has no output layer")
        weight = getattr(self.output, "weight", None)  # a quantised layer has none that could be read
        self.vocab_size = int(self.output.out_features if weight is None else weight.shape[0])
        self._forward = type(module).forward  # not the instance's own, which accelerate may have bound to its weights
        self._twin = module.__class__.__new__(module.__class__)
        parts = {
            name: _Given() if any(part is decoder for part in child.modules()) else child
            for name, child in module.named_children()
        }
        self._twin.__dict__.update({**module.__dict__, "_modules": parts})

    def logits(self, states: Tensor) -> Tensor:
        """[N, D] states after the final norm -> [N, V], in the model's own dtype; each is a row of one token."""
        states = states.to(self._device)
        logits: Tensor = self._forward(self._twin, inputs_embeds=states[:, None], use_cache=False).logits
        return logits[:, 0]

    @property
    def _device(self) -> torch.device:
        return torch.device(next(itertools.chain(self.output.parameters(), self.output.buffers())).device)


class _Given(nn.Module):
    """Stands where a decoder stood, at whatever depth, and gives back the states that it is handed."""

    @property
    def decoder(self) -> _Given:
        return self

    language_model = decoder

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: object) -> _Output:
        assert inputs_embeds is not None, "a head is given states"
        return _Output(inputs_embeds)


class _Output:
    """A decoder's output that holds its states and nothing else."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: int | slice) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return
