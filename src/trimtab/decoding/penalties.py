"""Penalties and biases of a step: what the tokens so far, and a request's biases, change in the mixed policy."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from trimtab.decoding.places import Place, Places
from trimtab.decoding.requests import Columns
from trimtab.mixing.sampling import answer_shift, penalise_repetition, shifted


def penalised(policy: Tensor, columns: Columns, places: Places) -> Tensor:
    """[B, V]: a mixed policy at all places of a step, with `SamplingParams`' penalties and biases; not renormalised."""
    if any(place.request.params.repetition_penalty != 1 for place in places):
        policy = penalise_repetition(policy, _seen(policy, places), columns.repetition_penalty)
    return shifted(policy, [_shift(place) for place in places])


def _seen(policy: Tensor, places: Places) -> Tensor:
    """[B, V] bool: the tokens of prompt and answer, at places whose request has a repetition penalty."""
    seen = torch.zeros_like(policy, dtype=torch.bool)
    for index, place in enumerate(places):
        if place.request.params.repetition_penalty != 1:
            ids = torch.tensor(place.read(), device=seen.device)
            seen[index, ids[ids < seen.shape[1]]] = True  # a model may read ids that it has no logit for
    return seen


def _shift(place: Place) -> dict[int, float]:
    """See `answer_shift`; forced ids that the model has no logit for are none of a policy's tokens."""
    params = place.request.params
    if not (params.presence_penalty or params.frequency_penalty):
        return dict(params.logit_bias)
    counts = Counter(token for token in place.answered if token < place.request.vocab_size)
    return answer_shift(counts, params.presence_penalty, params.frequency_penalty, params.logit_bias)
