"""Why a row of a batch cannot go on."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trimtab.errors import DeadEndError, NotFiniteError, TrimtabError
from trimtab.rules import not_finite_rows

UNREADY = TrimtabError("This request's prompt is not fed yet.")
"""Stands in a step's failures for a row that is not sampled from."""


def blame(row: int, base: Tensor, parts: Mapping[str, tuple[Tensor, Tensor]]) -> TrimtabError:
    """Which part is to blame for a row that cannot be sampled from."""
    if bool(not_finite_rows(base[row : row + 1])):
        return NotFiniteError("The model gives NaN log-probabilities. Its weights are damaged, or need another dtype.")
    for name, (scores, weights) in parts.items():
        if bool(weights[row] != 0) and bool(not_finite_rows(scores[row : row + 1])):
            return broken_guide(name)
    return DeadEndError(
        "Every token is forbidden: what the base allows, the guides or filters forbid. "
        "Lower the weights or the plausibility."
    )


def broken_guide(name: str) -> NotFiniteError:
    """The error of a guide whose scores are not numbers."""
    return NotFiniteError(f"Guide {name} gives NaN or +inf scores. Its weights are damaged; train it again.")
