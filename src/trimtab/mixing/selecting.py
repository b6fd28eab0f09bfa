"""The candidates of a guide that selects, and the walk over them. Functions of tensors; what looks is handed in.

Candidates are evaluated in growing looks, a few columns of one forward pass each, and a row leaves the walk as soon as
its rule is decided. How the looks are cut changes no verdict: a score belongs to a candidate and its row's past alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core import Candidates, Selection
from trimtab.mixing.rules import NEVER, not_finite_rows
from trimtab.mixing.sampling import keep_min_p, keep_top_k, keep_top_p

Look = Callable[[Tensor, Candidates, Tensor], Tensor]
"""(rows [N] of the walk, their candidates of this look [N, k], which are asked about [N] bool) -> scores [N, k]."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk over R rows and at most K candidates each found."""

    candidates: Candidates
    """[R, K], best first; beyond a row's number the log-probability is −inf."""
    counts: Tensor
    """[R] int64: candidates of each row, at least 1."""
    scores: Tensor
    """[R, K] float32: NaN where nothing looked."""
    weighted: Tensor
    """[R, K] float32: what the rule reads; −inf where nothing looked."""
    broken: Tensor
    """[R] bool: rows with a score that no guide may give (NaN or +inf)."""
    accepts: bool
    """Whether the rule accepts or rejects, or weighs (`SelectingRule.accepts`)."""


def survivors(policy: Tensor, *, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> tuple[Candidates, Tensor]:
    """What top-k, then top-p, then min-p [R] leave of a policy [R, V] at temperature 1: candidates, and counts [R].

    Best first, of equals the lower id first; K is the largest count. Log-probabilities stay those over the whole
    vocabulary. The order of the filters is MARA's (arXiv 2505.19743; its released code applies the temperature last).
    """
    table, ids = _head(policy, top_k)
    kept = keep_min_p(keep_top_p(keep_top_k(table, top_k), top_p), min_p)
    counts = (kept > NEVER).sum(dim=-1)
    logprobs, places = _best_first(kept, int(counts.max()))
    return Candidates(places if ids is None else ids.gather(1, places), logprobs), counts


def walk(candidates: Candidates, counts: Tensor, weights: Tensor, selection: Selection, look: Look) -> Walk:
    """Look at candidates [R, K] until every row's rule is decided; `weights` [R] are the requests'.

    A row with one candidate is not asked about, but looked at with the others: it is fed in the same forward pass.
    """
    scores = torch.full_like(candidates.logprobs, torch.nan, dtype=torch.float32)
    weighted = torch.full_like(scores, NEVER)
    broken = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    rows = torch.arange(len(counts), device=counts.device) if bool((counts > 1).any()) else counts.new_empty(0)
    start, number = 0, 0
    while len(rows):
        left = int(counts[rows].max())
        width = selection.width(number, len(rows))
        stop = left if width is None else min(start + width, left)
        asked = counts[rows] > 1
        found = look(rows, _slice(candidates, counts, rows, start, stop), asked).to(scores)
        real = (torch.arange(start, stop, device=rows.device) < counts[rows, None]) & asked[:, None]
        bad = not_finite_rows(found.masked_fill(~real, 0.0))
        verdicts = selection.rule.weigh(found, weights[rows, None]).masked_fill(~real, NEVER)
        scores[rows, start:stop] = found.masked_fill(~real, torch.nan)
        weighted[rows, start:stop] = verdicts
        broken[rows] = bad
        decided = bad | (counts[rows] <= stop)
        if selection.rule.lazy:
            decided |= (verdicts > 0).any(dim=-1)
        rows, start, number = rows[~decided], stop, number + 1
    return Walk(candidates, counts, scores, weighted, broken, selection.rule.accepts)


def _head(policy: Tensor, top_k: Tensor) -> tuple[Tensor, Tensor | None]:
    """The part of a policy [R, V] that top-k can keep, in rising order of ids, and those ids; (policy, None) for all.

    Everything after top-k then works on a few columns. Where equals might reach beyond them, all are needed.
    """
    most = int(top_k.max())
    if int(top_k.min()) == 0 or most + 1 >= policy.shape[1]:
        return policy, None
    values, ids = policy.topk(most + 1, dim=-1)
    if bool((values[:, -1] == values.gather(1, top_k[:, None] - 1).squeeze(1)).any()):
        return policy, None
    ids = ids.sort(dim=-1).values
    return policy.gather(1, ids), ids


def _best_first(kept: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` best of [R, V], sorted by falling value and then by rising id: values and ids [R, width]."""
    _, ids = kept.topk(width, dim=-1)
    ids = ids.sort(dim=-1).values  # topk leaves the order among equals open; a stable sort by value then fixes it
    values, order = kept.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _slice(candidates: Candidates, counts: Tensor, rows: Tensor, start: int, stop: int) -> Candidates:
    """Columns start..stop-1 of some rows; a row that has fewer repeats its last candidate, whose score is not read."""
    columns = torch.arange(start, stop, device=rows.device).expand(len(rows), -1)
    columns = torch.minimum(columns, counts[rows, None] - 1)
    return Candidates(candidates.token_ids[rows].gather(1, columns), candidates.logprobs[rows].gather(1, columns))
