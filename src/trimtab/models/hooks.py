"""Forward hooks for a while: a network is run to find something out, and is afterwards as it was before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

ForwardHook = Callable[[nn.Module, tuple[object, ...], object], Tensor | None]
"""(layer, its inputs, its output) -> another output, or None for the same."""


@contextlib.contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, ForwardHook]]) -> Iterator[None]:
    """Inside, each of these layers has its hook; outside, none of them has, whatever happened inside."""
    handles: list[RemovableHandle] = []
    try:
        for layer, hook in hooks:
            handles.append(layer.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
