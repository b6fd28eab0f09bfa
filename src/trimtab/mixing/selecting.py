"""The candidates of a guide that selects, and the walk over them. Functions of tensors; what looks is handed in.

Candidates are evaluated in looks, a few columns of one forward pass each, and a row leaves the walk as soon as its rule
is decided. A walk may end before every row is decided, and another go on there. How the looks are cut changes no
verdict: a score belongs to a candidate and its row's past alone.

A row may have a gate that is decided by its first candidate: that one is then looked at alone, and where the gate is
closed the row's walk ends with it (`significance`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core import Candidates, Rule, Selection
from trimtab.mixing.rules import NEVER, not_finite_rows
from trimtab.mixing.sampling import keep_min_p, keep_top_k, keep_top_p
from trimtab.mixing.significance import SignificanceGate

Look = Callable[[Tensor, Candidates, Tensor], Tensor]
"""(rows [N] of the walk, their candidates of this look [N, k], which are asked about [N] bool) -> scores [N, k]."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What an earlier walk found of the first k candidates of a row that it left undecided."""

    scores: Tensor
    """[k] float32."""
    weighted: Tensor
    """[k] float32."""
    num_looks: int
    """How many looks that took."""


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
    left: dict[int, Begun]
    """Row -> what was found of it, where the walk ended before its rule was decided."""
    gate: SignificanceGate | None = None
    """The gates of its rows, where any has one."""
    lazy: bool = True
    """Whether the first acceptance decides a row (`SelectingRule.lazy`)."""

    @property
    def significance(self) -> Tensor:
        """[R] float32: what the gate of each row read of its first candidate; NaN: no gate, or no look."""
        first = self.scores[:, 0]
        return torch.full_like(first, torch.nan) if self.gate is None else self.gate.significance(first)

    @property
    def closed(self) -> Tensor:
        """[R] bool: rows whose gate took the first candidate as it is."""
        first = self.scores[:, 0]
        return torch.zeros_like(first, dtype=torch.bool) if self.gate is None else self.gate.closed(first)

    def policy(self, rule: Rule) -> Tensor:
        """[R, K] log-probabilities: the rule's, and all on the first candidate where the row's gate is closed."""
        found = rule.policy(self.candidates, self.weighted)
        if self.gate is None:
            return found
        first = torch.full_like(found, NEVER).index_fill_(1, torch.tensor([0], device=found.device), 0.0)
        return torch.where(self.closed[:, None], first, found)


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


def walk(
    candidates: Candidates,
    counts: Tensor,
    weights: Tensor,
    selection: Selection,
    look: Look,
    *,
    pays: Callable[[int], int] | None = None,
    begun: Sequence[Begun | None] | None = None,
    ends: Callable[[Tensor], bool] | None = None,
    gate: SignificanceGate | None = None,
) -> Walk:
    """Look at candidates [R, K] until every row's rule is decided; `weights` [R] are the requests'.

    A row with one candidate is not asked about, but looked at with the others: it is fed in the same forward pass.
    `pays` says how many candidates of each of so many rows a look is worth, where the selection does not say and its
    rule is lazy. `begun` is what earlier walks found of each row. `ends` is asked after each look with the rows that
    are decided [R] bool, and says whether the walk ends there: the others are then in `Walk.left`. While a row with a
    `gate` is at its first candidate, a look is one candidate wide; where the gate is closed, the row is decided by it.
    """
    scores = torch.full_like(candidates.logprobs, torch.nan, dtype=torch.float32)
    weighted = torch.full_like(scores, NEVER)
    broken = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    starts, numbers = torch.zeros_like(counts), [0] * len(counts)
    for row, found in enumerate(begun or ()):
        if found is not None:
            starts[row], numbers[row] = len(found.scores), found.num_looks
            scores[row, : len(found.scores)], weighted[row, : len(found.scores)] = found.scores, found.weighted
    rows = torch.arange(len(counts), device=counts.device) if bool((counts > 1).any()) else counts.new_empty(0)
    while len(rows):
        most = int((counts - starts)[rows].max())
        width = _width(selection, min(numbers[row] for row in rows.tolist()), len(rows), pays)
        if gate is not None and bool((gate.gated & (starts == 0) & (counts > 1))[rows].any()):
            width = 1
        columns = starts[rows, None] + torch.arange(most if width is None else min(width, most), device=rows.device)
        asked = counts[rows] > 1
        verdicts = look(rows, _pick(candidates, counts, rows, columns), asked).to(scores)
        real = (columns < counts[rows, None]) & asked[:, None]
        bad = not_finite_rows(verdicts.masked_fill(~real, 0.0))
        weighed = selection.rule.weigh(verdicts, weights[rows, None])
        which, where = real.nonzero(as_tuple=True)
        scores[rows[which], columns[which, where]] = verdicts[which, where]
        weighted[rows[which], columns[which, where]] = weighed[which, where]
        broken[rows] = bad
        starts[rows] = columns[:, -1] + 1
        numbers = [number + 1 for number in numbers]
        decided = bad | (counts[rows] <= starts[rows])
        if selection.rule.lazy:
            decided |= (weighed.masked_fill(~real, NEVER) > 0).any(dim=-1)
        if gate is not None:
            decided |= gate.closed(scores[:, 0])[rows]
        rows = rows[~decided]
        if len(rows) and ends is not None and ends(_all_but(rows, len(counts))):
            break
    ends_at = starts.tolist()
    left = {
        row: Begun(scores[row, : ends_at[row]], weighted[row, : ends_at[row]], numbers[row]) for row in rows.tolist()
    }
    return Walk(candidates, counts, scores, weighted, broken, selection.rule.accepts, left, gate, selection.rule.lazy)


def _width(selection: Selection, number: int, num_rows: int, pays: Callable[[int], int] | None) -> int | None:
    """Candidates of a row in a look; None: all that are left."""
    if selection.looks is None and selection.rule.lazy and pays is not None:
        return max(1, pays(num_rows))
    return selection.width(number)


def _all_but(rows: Tensor, num: int) -> Tensor:
    """[num] bool: all but these rows."""
    return torch.ones(num, dtype=torch.bool, device=rows.device).index_fill(0, rows, False)


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


def _pick(candidates: Candidates, counts: Tensor, rows: Tensor, columns: Tensor) -> Candidates:
    """Columns [N, k] of some rows [N]; a row that has fewer repeats its last candidate, whose score is not read."""
    columns = torch.minimum(columns, counts[rows, None] - 1)
    return Candidates(candidates.token_ids[rows].gather(1, columns), candidates.logprobs[rows].gather(1, columns))
