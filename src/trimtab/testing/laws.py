"""The laws by name, the error that names one, and the comparison that raises it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trimtab.errors import PromptError

WELL_FORMED = "numbers are well formed"
PURE = "reading is pure"
ALONE = "a row's numbers do not depend on its company"
ADMIT = "admit(p + t) equals admit(p) then advance(t)"
KEEP = "keep(rows) is indexing"
ROWS = "reading some rows is indexing the reading of all"
SUBSET = "a subset of the candidates equals gathering from all of them"
PEEK = "peek equals the context after advance"
REMEMBERED = "what is remembered changes no number"
BESIDE = "a shared forward pass changes no number"
DRAFT = "a drafted token reads as an advanced one, and leaves nothing where it is taken back"
WEIGHT_ZERO = "weight 0 gives the base"
FORBIDDEN = "what is forbidden stays forbidden"
CONSTANT = "a constant added to a row of scores changes nothing"
TEXT = "the text of an answer is what its tokens add to the decoded prompt"
LAZY = "what comes after the first acceptance changes nothing"

TOLERANCE = 1e-4
"""Accepted difference between float32 numbers that ought to be equal."""


class LawViolation(AssertionError):  # noqa: N818  nothing went wrong but the law
    """A law does not hold. `law` is its text, `evidence` the numbers."""

    def __init__(self, law: str, evidence: str) -> None:
        super().__init__(f"{law}: {evidence}")
        self.law = law
        self.evidence = evidence


@contextmanager
def stating(law: str) -> Iterator[None]:
    """An error of the model or guide while a law is checked breaks that law: it is raised as LawViolation, from it.

    A prompt that the model refuses is the caller's.
    """
    try:
        yield
    except (LawViolation, PromptError):
        raise
    except Exception as error:
        raise LawViolation(law, f"{type(error).__name__} was raised: {error}") from error


def same(law: str, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise LawViolation with the worst pair of numbers unless two tensors agree; infinities must match exactly."""
    found, expected = found.float().cpu(), expected.float().cpu()
    if found.shape != expected.shape:
        raise LawViolation(law, f"{what}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    gap = torch.where(found == expected, 0.0, (found - expected).abs() / expected.abs().clamp(min=1.0))
    gap = torch.where(torch.isnan(gap), torch.inf, gap)
    if gap.numel() and float(gap.max()) > tolerance:
        where = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
        numbers = f"{float(found[where]):.6g} instead of {float(expected[where]):.6g}"
        raise LawViolation(law, f"{what}: at {where} {numbers} (tolerance {tolerance:g})")
