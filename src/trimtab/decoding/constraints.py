"""What the constraints and least lengths of running requests allow at each place of a step."""

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
    """Places at which not every token is allowed, and what is."""

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

    A place behind a drafted token that its constraint does not allow is left out too: no run of tokens gets there.
    """
    found = Restriction()
    for index, place in enumerate(places):
        is_free = place.request.matching is None and not place.must_go_on
        if is_free or place.row in waiting or not _is_reached(place, found, index):
            continue
        try:
            found.allowed.append(_allowed(place))
        except DeadEndError as error:
            found.failures[index] = error
        else:
            found.indices.append(index)
    return found


def _allowed(place: Place) -> Tensor:
    """[V] bool, True = may follow. Raises DeadEndError where nothing may."""
    request = place.request
    if request.matching is not None:
        allowed = request.matching.allowed(place.answered)
    else:
        allowed = torch.ones(request.vocab_size, dtype=torch.bool)
    if not place.must_go_on:
        return allowed
    ends = torch.tensor([token for token in request.end_ids if token < len(allowed)], dtype=torch.int64)
    allowed = allowed.index_fill(0, ends, False)
    if not bool(allowed.any()):
        raise DeadEndError(
            f"After {place.position} tokens the answer could only end, and min_tokens is "
            f"{request.params.min_tokens}. Lower min_tokens, or change what forbids every other token."
        )
    return allowed


def _is_reached(place: Place, found: Restriction, index: int) -> bool:
    """Whether the last drafted token before a place is allowed where it was drafted, as far as a constraint says."""
    if not place.drafted or place.request.matching is None:
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
