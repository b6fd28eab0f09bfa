"""The output head of a language model, run where a token is predicted and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def head_at(head: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside, `head` sees only some positions of its input: [R, L, D] at `positions` [R, L] bool is [N, D].

    What a model does to its logits after the head (soft caps, scales) works on [N, V] as on [R, L, V].
    """
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][positions.to(args[0].device)], *args[1:]))
    try:
        yield
    finally:
        handle.remove()
