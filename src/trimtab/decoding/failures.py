"""Why a row of a batch cannot go on, and what an error that nobody foresaw becomes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trimtab.errors import DeadEndError, NotFiniteError, TrimtabError, UnexpectedError
from trimtab.mixing.rules import not_finite_rows

UNREADY = TrimtabError("This request's prompt is not fed yet.")
"""Stands in a step's failures for a row that is not sampled from."""


def blame(
    row: int, base: Tensor, parts: Mapping[str, tuple[Tensor, Tensor]], *, constrained: bool = False
) -> TrimtabError:
    """Which part is to blame for a row that cannot be sampled from."""
    if bool(not_finite_rows(base[row : row + 1])):
        return NotFiniteError("The model gives NaN log-probabilities. Its weights are damaged, or need another dtype.")
    for name, (scores, weights) in parts.items():
        if bool(weights[row] != 0) and bool(not_finite_rows(scores[row : row + 1])):
            return broken_guide(name)
    if constrained:
        return DeadEndError(
            "Every token that the constraint allows is forbidden by the model, by guides or filters, or no token "
            "continues what the constraint asks for. Give another constraint, or lower the weights or the plausibility."
        )
    return DeadEndError(
        "Every token is forbidden: what the base allows, the guides or filters forbid. "
        "Lower the weights or the plausibility."
    )


def broken_guide(name: str) -> NotFiniteError:
    """The error of a guide whose scores are not numbers."""
    return NotFiniteError(f"Guide {name} gives NaN or +inf scores. Its weights are damaged; train it again.")


def unexpected(error: Exception) -> TrimtabError:
    """The error as a request's own: one of ours as it is, another as the cause of an `UnexpectedError`."""
    if isinstance(error, TrimtabError):
        return error
    ours = UnexpectedError(f"An unexpected error ({type(error).__name__}) ended this answer; the log says more.")
    ours.__cause__ = error
    return ours


def without_frames(error: Exception) -> Exception:
    """The error without its traceback: what lives in those frames, a batch's whole memory, would live on with it."""
    known: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in known:
            known.add(id(one))
            one.__traceback__ = None
            left += [one.__cause__, one.__context__]
    return error


def is_lost(device: torch.device) -> bool:
    """Whether a device computes nothing any more, as a GPU after an assertion that failed in one of its kernels."""
    try:
        return int(torch.ones(1, device=device).add_(1).item()) != 2
    except RuntimeError:
        return True
