"""Where the guides of a step act: the gates of its requests, place by place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.decoding.places import Places
from trimtab.gates import BET, SIGNIFICANCE, Gate, read_gate
from trimtab.mixing.gates import acting, bet
from trimtab.mixing.noise import step_keys
from trimtab.mixing.sampling import normalised
from trimtab.mixing.significance import SignificanceGate, least_significance


@dataclass(frozen=True, slots=True)
class Gates:
    """The gates of a step."""

    base: Tensor
    """[B, V]: what they read of the base, as far as a request's constraint, least length and plausibility leave it."""
    acting: Mapping[str, Tensor]
    """Guide -> [B] bool, the places where it acts; only guides that a gate may close before they are asked."""

    def of_significance(
        self, name: str, places: Places, indices: Sequence[int], first: Tensor
    ) -> SignificanceGate | None:
        """A guide's gates of significance at some places, whose first candidates are `first` [N]; None: it has none."""
        texts = [places[index].request.params.gates.get(name) for index in indices]
        gates = [None if text is None else read_gate(text) for text in texts]
        if not any(gate is not None and gate.rule == SIGNIFICANCE for gate in gates):
            return None
        least = [
            least_significance(gate.number, places[index].request.significances)
            if gate is not None and gate.rule == SIGNIFICANCE
            else torch.nan
            for index, gate in zip(indices, gates, strict=True)
        ]
        device = self.base.device
        logprobs = normalised(self.base[torch.tensor(indices, device=device)]).gather(1, first[:, None]).squeeze(1)
        return SignificanceGate.of(
            logprobs, self.base.shape[1], torch.tensor(least, dtype=torch.float64, device=device)
        )


def open_places(places: Places, base: Tensor) -> dict[str, Tensor]:
    """Guide -> [B] bool, the places where it acts; only guides that a gate may close. `base` is [B, V]."""
    of_guide: dict[str, dict[Gate, list[int]]] = {}
    for index, place in enumerate(places):
        for name, text in place.request.params.gates.items():
            gate = read_gate(text)
            if gate.rule not in (BET, SIGNIFICANCE):
                of_guide.setdefault(name, {}).setdefault(gate, []).append(index)
    found: dict[str, Tensor] = {}
    for name, gates in of_guide.items():
        found[name] = torch.ones(len(places), dtype=torch.bool, device=base.device)
        for gate, indices in gates.items():
            keys = step_keys([(places[index].request.seed, places[index].position) for index in indices], base.device)
            at = torch.tensor(indices, device=base.device)
            found[name][at] = acting(gate, base[at], keys, name)
    return found


def bets(places: Places, parts: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[list[int], Tensor]]:
    """Guide -> the places where a request bets against it and it runs, and how much may be lost there: [N] float32."""
    found: dict[str, list[tuple[int, float]]] = {}
    for index, place in enumerate(places):
        for name, text in place.request.params.gates.items():
            gate = read_gate(text)
            if gate.rule == BET and place.request.weights[name] != 0 and name in parts:
                found.setdefault(name, []).append((index, gate.number))
    return {
        name: ([index for index, _ in some], torch.tensor([slack for _, slack in some])) for name, some in found.items()
    }


def with_bet(mixed: Tensor, without: Tensor, indices: list[int], slack: Tensor) -> Tensor:
    """The mixed policies [B, V] with the bet at some places, against `without` [N, V], the mix without its guide."""
    at = torch.tensor(indices, device=mixed.device)
    return mixed.index_copy(0, at, bet(without, mixed[at], slack.to(mixed.device)))
