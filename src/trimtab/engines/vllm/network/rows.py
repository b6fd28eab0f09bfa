"""Wide rows: the states of base and guides and the request's weights side by side, so that whatever vLLM does to the
rows of a hidden state (slices, padding, drafts, chunks of a prompt) keeps them together. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def num_columns(num_guides: int, dtype: torch.dtype) -> int:
    """How many columns of a dtype hold the float32 weights of N guides."""
    return num_guides * (torch.float32.itemsize // dtype.itemsize)


def join(states: Sequence[Tensor], weights: Tensor) -> Tensor:
    """States [T, D_i], all of one dtype, and weights [T, guides] float32 -> [T, ΣD_i + num_columns].

    The weights' bits are kept as they are, whatever the states' dtype.
    """
    return torch.cat([*states, weights.contiguous().view(states[0].dtype)], dim=-1)


def split(rows: Tensor, sizes: Sequence[int], num_guides: int) -> tuple[list[Tensor], Tensor]:
    """The states [N, D_i] and weights [N, guides] float32 of joined rows."""
    *states, bits = torch.split(rows, [*sizes, num_columns(num_guides, rows.dtype)], dim=-1)
    return states, bits.contiguous().view(torch.float32)
