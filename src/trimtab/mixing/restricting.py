"""A policy restricted to what is allowed, renormalised: how a constraint meets the base before guides are mixed in."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.mixing.rules import NEVER


def restricted(logprobs: Tensor, rows: Tensor, allowed: Tensor) -> Tensor:
    """[B, V] float32: `logprobs` [B, V] with the named rows [N] normalised over the tokens that are allowed [N, V].

    Rows are distinct, and in order where they are all. The others stay bit for bit. A row in which nothing that is
    allowed is possible is −inf throughout; a NaN stays.
    """
    some = logprobs[rows].to(torch.float32).masked_fill_(~allowed, NEVER)
    total = torch.logsumexp(some, dim=-1, keepdim=True)
    some.sub_(total.masked_fill_(torch.isneginf(total), 0.0))
    return some if len(rows) == len(logprobs) else logprobs.index_copy(0, rows, some.to(logprobs.dtype))
