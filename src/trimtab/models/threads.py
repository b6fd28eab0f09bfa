"""How many threads a step of decoding is computed with on a processor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trimtab.models.processor import medians, num_cores

_OUT, _IN, _NUM_LAYERS = 1536, 1536, 8
"""Layers that together do not fit into a core's own cache, as those of a model do not."""
_NUM_TURNS = 9
_WORTH = 1.1
"""How much faster more threads must be to be taken."""


def use_threads(wanted: int | None) -> int:
    """Compute with so many threads from here on, or, None, with as many as are fastest now. Returns how many."""
    num = quickest(num_cores()) if wanted is None else wanted
    torch.set_num_threads(num)
    return num


@torch.inference_mode()
def quickest(most: int) -> int:
    """The number of threads, up to `most`, with which products of two rows take least time on this machine now.

    A busy machine is the reason to ask: threads that wait for each other make a step several times slower there.
    """
    before = torch.get_num_threads()
    layers = [torch.ones(_OUT, _IN) for _ in range(_NUM_LAYERS)]
    try:
        best, least = 1, _seconds(layers, 1)
        num = 2
        while num <= most:
            taken = _seconds(layers, num)
            if taken * _WORTH < least:
                best, least = num, taken
            num = most if num < most < 2 * num else 2 * num
        return best
    finally:
        torch.set_num_threads(before)


def _seconds(layers: Sequence[torch.Tensor], num_threads: int) -> float:
    """What one product with each layer takes with so many threads."""
    torch.set_num_threads(num_threads)
    rows = torch.ones(2, _IN)
    return medians([[(rows, layer) for layer in layers]], _NUM_TURNS)[0]
