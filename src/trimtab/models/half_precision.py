"""Whether half precision is slower than float32 on this processor: measured on the model itself when it is loaded.

Processors without units for bfloat16 (or float16) widen each weight before they multiply; what that costs depends on
the processor, on the sizes and on the number of rows, so it is measured and not looked up.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models.processor import medians

log = logging.getLogger(__name__)

_NUM_LAYERS = 8
_NUM_ROWS = 2
"""A base's row and a guide's."""
_NUM_TURNS = 5
_SLOWER = 1.05
"""Times the float32 time from which on it is said."""


def warn_where_slower(module: Any, name: str) -> None:
    """Log a warning with the measured ratio where half precision on a processor makes a network slower than float32."""
    weights = [part.weight for part in module.modules() if type(part) is nn.Linear]
    weights = sorted(weights, key=lambda weight: -weight.numel())[:_NUM_LAYERS]
    if not weights or weights[0].device.type != "cpu" or weights[0].dtype not in (torch.bfloat16, torch.float16):
        return
    ratio = ratio_to_float32(weights)
    if ratio >= _SLOWER:
        log.warning(
            "%s in %s takes %.1f times as long as in float32 on this processor (its %d largest layers, %d rows). Leave "
            "the dtype at auto; quantize int8 or float16 is faster than either",
            *(name, str(weights[0].dtype).removeprefix("torch."), ratio, len(weights), _NUM_ROWS),
        )


@torch.inference_mode()
def ratio_to_float32(weights: Sequence[Tensor]) -> float:
    """Seconds that products with some weights [out, in] take, over those of the same in float32; of medians."""
    halves = [(torch.ones(_NUM_ROWS, weight.shape[1], dtype=weight.dtype), weight) for weight in weights]
    floats = [(rows.float(), weight.float()) for rows, weight in halves]
    half, single = medians([halves, floats], _NUM_TURNS)
    return half / single
