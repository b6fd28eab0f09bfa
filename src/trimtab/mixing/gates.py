"""What gates come to: where a guide acts, and the conservative bet. Pure functions of tensors; `trimtab.gates` has the
rules in words."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from trimtab.gates import ENTROPY, MARGIN, RANDOM, Gate
from trimtab.mixing.noise import uniforms
from trimtab.mixing.rules import bad_rows
from trimtab.mixing.sampling import normalised
from trimtab.mixing.tracing import entropy

_BEYOND = 1 << 40
"""Counters from here on belong to gates; those below are token ids."""


def acting(gate: Gate, base: Tensor, keys: Tensor, name: str) -> Tensor:
    """[B] bool: whether a guide acts, from the base's log-probabilities [B, V] and the draws' keys [B].

    A gate of chance reads a number that belongs to the key and to the guide's `name`, and to no token.
    """
    if gate.rule == ENTROPY:
        return entropy(normalised(base)) > gate.number
    if gate.rule == MARGIN:
        first, second = normalised(base).topk(2, dim=-1).values.exp().unbind(dim=-1)
        return first - second < gate.number
    if gate.rule == RANDOM:
        counter = torch.full((len(keys), 1), _BEYOND + zlib.crc32(name.encode()), dtype=torch.int64, device=keys.device)
        return uniforms(keys, counter).squeeze(1) < gate.number
    raise ValueError(gate.rule)


def bet(base: Tensor, mixed: Tensor, slack: Tensor) -> Tensor:
    """[B, V] log-probabilities of the conservative bet (arXiv 2604.16146), with b the base and q the mix.

    A draw v ~ b stands where b(v) ≥ max q − λ, λ the row's `slack` [B]; else v ~ q: π(v) = b(v)·[v stands] + q(v)·Σ b
    of those that do not. What q forbids does not stand. `mixed` is normalised; a row of it that cannot be drawn
    from stays as it is.
    """
    lowest = mixed.amax(dim=-1).exp() - slack.to(mixed)
    chance = normalised(base.to(mixed)).exp()
    stands = (chance >= lowest[:, None]) & ~torch.isneginf(mixed)
    refused = torch.where(stands, 0.0, chance).sum(dim=-1, keepdim=True)
    policy = (torch.where(stands, chance, 0.0) + refused * mixed.exp()).log()
    return torch.where(bad_rows(mixed)[:, None], mixed, policy)
