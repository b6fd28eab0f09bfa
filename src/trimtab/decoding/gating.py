"""Where the guides of a step act: the gates of its requests, place by place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trimtab.decoding.places import Places
from trimtab.gates import BET, Gate, read_gate
from trimtab.mixing.gates import acting, bet
from trimtab.mixing.noise import step_keys


def open_places(places: Places, base: Tensor) -> dict[str, Tensor]:
    """Guide -> [B] bool, the places where it acts; only guides that a gate may close. `base` is [B, V]."""
    of_guide: dict[str, dict[Gate, list[int]]] = {}
    for index, place in enumerate(places):
        for name, text in place.request.params.gates.items():
            gate = read_gate(text)
            if gate.rule != BET:
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
