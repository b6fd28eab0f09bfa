"""Texts that begin alike, read once: the answers to one prompt, which a decoder need not read anew for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trimtab.models.forward.prefixes import LEAST, in_common

_ALIKE = 0.8
"""Neighbours go together that share at least this part of what either shares with a neighbour."""


def beginnings(rows: Sequence[list[int]]) -> list[tuple[int, list[int]]]:
    """(how many tokens they begin with alike, which rows) for groups of rows [N] that are worth it; others are in none.

    The last token of a row is never among the shared ones, since its state is asked for.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index])
    shared = [
        min(in_common(rows[one], rows[other]), len(rows[one]) - 1, len(rows[other]) - 1)
        for one, other in pairwise(order)
    ]
    found: list[tuple[int, list[int]]] = []
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and shared[end - 1] >= _ALIKE * max(shared[max(0, end - 2) : end + 1]):
            continue
        length = min(shared[start : end - 1], default=0)
        if length >= LEAST:
            found.append((length, order[start:end]))
        start = end
    return found


def states_after(decoder: Any, shared: list[int], token_ids: Tensor, mask: Tensor) -> Tensor:
    """[N, D] states of the last tokens of rows that begin with the `shared` tokens.

    `token_ids` [N, S] are what follows in each, filled up on the right, and `mask` [N, S] int64 is 1 where a token is.
    `decoder` is transformers' network without its head.
    """
    num = len(token_ids)
    before = torch.tensor([shared], device=token_ids.device)
    read = decoder(input_ids=before, attention_mask=torch.ones_like(before), use_cache=True)
    read.past_key_values.batch_repeat_interleave(num)
    seen = torch.cat([mask.new_ones(num, len(shared)), mask], dim=1)
    output = decoder(input_ids=token_ids, attention_mask=seen, past_key_values=read.past_key_values, use_cache=True)
    return at_ends(output.last_hidden_state, mask)


def at_ends(states: Tensor, mask: Tensor) -> Tensor:
    """[N, D] of states [N, S, D]: those of the last tokens of rows that are filled up on the right, by their mask."""
    rows = torch.arange(len(states), device=states.device)
    return states[rows, mask.sum(1).to(states.device) - 1]


def sees_everything(config: Any) -> bool:
    """Whether a config speaks of no attention that reads less than all that was, whose cache could not be handed on."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return kinds <= {"full_attention"} and not any(windows)
