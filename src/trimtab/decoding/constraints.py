"""What the constraints of running requests allow at each place of a step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.decoding.places import Place, Places
from trimtab.decoding.requests import Request
from trimtab.errors import DeadEndError, TrimtabError
from trimtab.mixing.restricting import restricted

if TYPE_CHECKING:
    from trimtab.constraining.matching import Matching


@dataclass(slots=True)
class Restriction:
    """Places with a constraint, and what is allowed there."""

    indices: list[int] = field(default_factory=list)
    allowed: list[Tensor] = field(default_factory=list)
    """[V] bool each."""
    failures: dict[int, TrimtabError] = field(default_factory=dict)
    """Places of answers that cannot go on."""

    def of(self, logprobs: Tensor) -> Tensor:
        """[B, V]: the base's log-probabilities at all places, restricted and renormalised at these."""
        if not self.indices:
            return logprobs
        device = logprobs.device
        rows = torch.tensor(self.indices, device=device)
        return restricted(logprobs, rows, torch.stack(self.allowed).to(device))


def restriction(places: Places, waiting: Collection[int]) -> Restriction:
    """What is allowed at the places of a step; rows that wait for their prompt to be fed are left out.

    A place behind a drafted token that is not allowed is left out too: no run of tokens gets there.
    """
    found = Restriction()
    for index, place in enumerate(places):
        matching = place.request.matching
        if matching is None or place.row in waiting or not _is_reached(place, found, index):
            continue
        try:
            found.allowed.append(matching.allowed((*place.request.token_ids, *place.drafted)))
        except DeadEndError as error:
            found.failures[index] = error
        else:
            found.indices.append(index)
    return found


def _is_reached(place: Place, found: Restriction, index: int) -> bool:
    """Whether the last drafted token before a place is allowed where it was drafted."""
    if not place.drafted:
        return True
    is_before = bool(found.indices) and found.indices[-1] == index - 1
    return is_before and bool(found.allowed[-1][place.drafted[-1]]) and not place.request.ends(place.drafted[-1])


class Certain:
    """Drafts of what a constraint leaves no choice of."""

    def __init__(self, matching: Matching) -> None:
        self._matching = matching

    def next(self, token_ids: Sequence[int], num: int) -> list[int]:
        """Up to `num` tokens that probably follow an answer so far."""
        try:
            return self._matching.certain(token_ids)[:num]
        except DeadEndError:  # the step itself says so
            return []


def acceptable(request: Request, draft: Sequence[int]) -> list[int]:
    """A draft without what its request's constraint does not let follow."""
    if request.matching is None:
        return list(draft)
    try:
        return list(draft[: request.matching.num_accepted(request.token_ids, draft)])
    except DeadEndError:  # the step itself says so
        return []
