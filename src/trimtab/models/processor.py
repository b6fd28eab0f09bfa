"""What is asked of the processor: who made it, how many cores there are, and how long its products take.

Importing this does not import torch, which may be missing where one wants to know.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

CPU_INFO = Path("/proc/cpuinfo")

Product: TypeAlias = "tuple[Tensor, Tensor]"
"""Rows [N, in] and a weight [out, in]."""


def cpu_info(key: str) -> str | None:
    """What Linux says of the first core under this key (`vendor_id`, `model name`); None where it says nothing."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def num_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds(products: Sequence[Product]) -> float:
    """How long these products take, one after the other."""
    from torch import nn

    started = time.perf_counter()
    for rows, weight in products:
        nn.functional.linear(rows, weight)
    return time.perf_counter() - started


def medians(ways: Sequence[Sequence[Product]], num_turns: int) -> list[float]:
    """What each way takes: medians of turns in which all of them are timed, after one that warms up."""
    turns = [[seconds(products) for products in ways] for _ in range(num_turns + 1)]
    return [statistics.median(taken) for taken in zip(*turns[1:], strict=True)]
