"""The requests that are decoded together: one step of all of them, and the sessions that remember their past.

One order, for every request: base log-probabilities -> plausibility mask -> Σ weightᵢ · scoreᵢ in float32 -> rule ->
repetition penalty -> temperature -> top-k, top-p, min-p of the mixed policy -> draw. Nothing renormalises weights: at
weight 1 and temperature 1 the policy is exactly π_base · π_guide, normalised.

Where a guide that selects runs (an accept-reject agent), top-k, top-p and min-p of the tilted policy choose its
candidates at temperature 1, and its rule makes the policy that the temperature and the draw act on.

A batch decides nothing about who runs when (`decoding`), and holds nothing that its requests do not tell: one that is
made anew from them goes on with the same tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.answers import TokenTrace
from trimtab.core import Candidates, Guide, LanguageModel, Rule, Session
from trimtab.decoding.capacity import Capacity
from trimtab.decoding.failures import UNREADY, blame, broken_guide
from trimtab.decoding.lanes import Lane, Rows, SelectingLane
from trimtab.decoding.requests import Columns, Request
from trimtab.errors import TrimtabError
from trimtab.mixing.noise import step_keys
from trimtab.mixing.rules import NEVER, bad_rows, mix
from trimtab.mixing.sampling import apply_temperature, draw, final_policy, penalise_repetition, plausible
from trimtab.mixing.selecting import Walk
from trimtab.mixing.tracing import StepTensors, traces


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step came to, by row; a row whose prompt is not fed yet is in none of them."""

    tokens: Mapping[int, int]
    """The next token of every row that can go on."""
    failures: Mapping[int, TrimtabError]
    """Why a row cannot."""
    traces: Mapping[int, TokenTrace]


@dataclass(slots=True)
class _Selected:
    """What guides that select came to, by row of the batch."""

    tokens: dict[int, int]
    mixed: dict[int, Tensor]
    """Row -> its rule's policy at temperature 1, [V]; like `final`, only for rows with a trace."""
    final: dict[int, Tensor]
    choices: dict[int, tuple[str, Walk, int]]


class Batch:
    """Running requests, a session of the model, and a lane for each guide."""

    def __init__(self, model: LanguageModel, guides: Mapping[str, Guide], rule: Rule) -> None:
        self.running: list[Request] = []
        self._rule = rule
        self._session = model.open()
        self._base = Rows(self._session)
        self._tilting: list[Lane] = []
        self._selecting: list[SelectingLane] = []
        for name, guide in guides.items():
            if guide.selection is None:
                self._tilting.append(Lane(name, guide, self._session))
            else:
                self._selecting.append(SelectingLane(name, guide, guide.selection, self._session))
        self._lanes: list[Lane] = [*self._tilting, *self._selecting]
        self._sides: tuple[Rows[Session], ...] = (self._base, *self._lanes)
        self._columns: Columns | None = None
        self.capacity = Capacity(self._session, {lane.name: lane.session for lane in self._lanes})

    @property
    def num_rows(self) -> int:
        """Rows of the session that has the most of them: of the base's, one for each running request."""
        return max(side.num_rows for side in self._sides)

    def cost(self, request: Request) -> int:
        """How many tokens of a request have to be fed before its next one, the costliest side's."""
        lanes = [lane.unknown(request.read_by(lane.name)) for lane in self._lanes if request.weights[lane.name] != 0]
        return max(self._base.unknown(request.read_by(None)), *lanes, 1)

    def admit(self, new: Sequence[tuple[Request, int]]) -> None:
        """Take requests in, each with as many of its tokens fed as its number says."""
        self.running.extend(request for request, _ in new)
        self._columns = None
        self._base.admit([(request, request.read_by(None), share) for request, share in new])
        for lane in self._lanes:
            mine = [(request, share) for request, share in new if request.weights[lane.name] != 0]
            lane.admit([(request, request.read_by(lane.name), share) for request, share in mine])

    def filling(self) -> dict[int, int]:
        """Row -> how many of its tokens are still to be fed, where there are any."""
        left = {row: max(side.left(request) for side in self._sides) for row, request in enumerate(self.running)}
        return {row: num for row, num in left.items() if num}

    def fill(self, budget: int) -> int:
        """Feed at most so many of the tokens that are left, the oldest request's first; returns what is not spent."""
        for row, left in self.filling().items():
            share = min(left, budget)
            for side in self._sides:
                side.fill(self.running[row], share)
            budget -= share
        return budget

    def step(self) -> Outcome:
        """The next token of every row that is fed. Nothing that is remembered changes: see `advance`."""
        waiting = self.filling()
        ready = {row: request for row, request in enumerate(self.running) if row not in waiting}
        if not ready:
            return Outcome({}, {}, {})
        tensors, policy, failures = self._policy()
        for row in waiting:
            failures[row] = UNREADY
        keys = step_keys([(request.seed, len(request.token_ids)) for request in self.running], policy.device)
        selected = self._select(policy, keys, failures)
        if failures:  # these rows end in this step; give them something that can be drawn from
            policy = policy.index_fill(0, torch.tensor(list(failures), device=policy.device), 0.0)
        forced = {row: token for row, request in ready.items() if (token := request.forced()) is not None}
        drawn, final = self._draw(policy, keys, selected.tokens)
        tokens = {**drawn, **selected.tokens, **forced}
        tensors = replace(
            tensors,
            mixed=_with_rows(tensors.mixed, selected.mixed),
            final=None if final is None else _with_rows(final, selected.final),
            choices=selected.choices,
        )
        notes = self._trace(tensors, tokens, failures)
        for row in waiting:
            del failures[row]
        return Outcome({row: tokens[row] for row in ready if row not in failures}, failures, notes)

    def keep(self, requests: Sequence[Request]) -> None:
        """Go on with these of the running requests."""
        if len(requests) == len(self.running):
            return
        running = {request.request_id for request in requests}
        for side in self._sides:
            side.keep(running)
        self.running = list(requests)
        self._columns = None

    def advance(self, tokens: Mapping[int, int]) -> None:
        """Remember the token of each request, by request id."""
        for side in self._sides:
            side.advance(tokens)

    def _policy(self) -> tuple[StepTensors, Tensor, dict[int, TrimtabError]]:
        """The step's tables, the mixed and penalised policy [B, V], and the rows that cannot go on."""
        base = self._session.logprobs()
        columns = self._columns = self._columns or Columns.of(self.running, base.device)
        proposed = base
        if any(request.params.plausibility for request in self.running):
            proposed = base.masked_fill(~plausible(base, columns.plausibility), -torch.inf)
        ids = torch.arange(base.shape[1], device=base.device).expand(len(base), -1)
        context = self._session.context() if any(lane.guide.needs_context for lane in self._tilting) else None
        candidates = Candidates(ids, proposed, context=context, complete=True)
        positions = self._positions()
        parts = {lane.name: part for lane in self._tilting if (part := lane.part(candidates, positions)) is not None}
        mixed = proposed
        if parts:
            tilted = self._rule.policy(candidates, mix(base, list(parts.values())))
            # A row without guides keeps the base's numbers bit for bit.
            guided = torch.stack([weights != 0 for _, weights in parts.values()]).any(dim=0)
            mixed = tilted if bool(guided.all()) else torch.where(guided[:, None], tilted, proposed)
        failures = {row: blame(row, base, parts) for row in bad_rows(mixed).nonzero().flatten().tolist()}
        tensors = StepTensors(
            base,
            mixed,
            {name: scores for name, (scores, _) in parts.items()},
            {name: weights != 0 for name, (_, weights) in parts.items()},
        )
        return tensors, self._penalised(mixed, columns), failures

    def _positions(self) -> dict[int, int]:
        return {request.request_id: row for row, request in enumerate(self.running)}

    def _penalised(self, policy: Tensor, columns: Columns) -> Tensor:
        if all(request.params.repetition_penalty == 1 for request in self.running):
            return policy
        seen = torch.zeros_like(policy, dtype=torch.bool)
        for row, request in enumerate(self.running):
            if request.params.repetition_penalty != 1:
                ids = torch.tensor(request.read_by(None), device=seen.device)
                seen[row, ids[ids < seen.shape[1]]] = True  # a model may read ids that it has no logit for
        return penalise_repetition(policy, seen, columns.repetition_penalty)

    def _select(self, policy: Tensor, keys: Tensor, failures: dict[int, TrimtabError]) -> _Selected:
        """The tokens of the rows in which a guide selects, with what led to them; adds to `failures`."""
        selected = _Selected({}, {}, {}, {})
        columns = self._columns
        assert columns is not None
        for lane in self._selecting:
            found = lane.select(policy, columns, self._positions(), failures)
            if found is None:
                continue
            rows, walk, chosen = found
            ids = walk.candidates.token_ids
            final = apply_temperature(chosen, columns.temperature[rows])
            tokens = ids.gather(1, draw(final, keys[rows], ids)[:, None]).squeeze(1)
            selected.tokens.update(zip(rows.tolist(), tokens.tolist(), strict=True))
            for index, row in enumerate(rows.tolist()):
                if bool(walk.broken[index]):
                    failures[row] = broken_guide(lane.name)
                elif self.running[row].params.trace:
                    selected.choices[row] = (lane.name, walk, index)
                    selected.mixed[row] = _spread(chosen[index], ids[index], policy.shape[1])
                    selected.final[row] = _spread(final[index], ids[index], policy.shape[1])
        return selected

    def _draw(self, policy: Tensor, keys: Tensor, without: Collection[int]) -> tuple[dict[int, int], Tensor | None]:
        """A token for each row but those `without`, and what it was drawn from [B, V] where a row has a trace."""
        columns = self._columns
        assert columns is not None
        left = [row for row in range(len(self.running)) if row not in without]
        traced = any(request.params.trace for request in self.running)
        greedy = all(self.running[row].params.temperature == 0 for row in left)
        if greedy and not traced:
            best = policy.argmax(dim=-1).tolist()
            return {row: best[row] for row in left}, None
        rows = slice(None) if traced or not without else torch.tensor(left, device=policy.device)
        final = final_policy(
            policy[rows],
            temperature=columns.temperature[rows],
            top_k=columns.top_k[rows],
            top_p=columns.top_p[rows],
            min_p=columns.min_p[rows],
        )
        tokens = dict(zip(range(len(self.running)) if traced else left, draw(final, keys[rows]).tolist(), strict=True))
        return {row: tokens[row] for row in left}, final if traced else None

    def _trace(
        self, tensors: StepTensors, tokens: Mapping[int, int], without: Collection[int]
    ) -> dict[int, TokenTrace]:
        rows = [row for row, request in enumerate(self.running) if request.params.trace and row not in without]
        if not rows:
            return {}
        params = [self.running[row].params for row in rows]
        notes = traces(
            tensors,
            [tokens[row] for row in rows],
            rows,
            [how.num_alternatives for how in params],
        )
        return dict(zip(rows, notes, strict=True))


def _spread(values: Tensor, token_ids: Tensor, vocab_size: int) -> Tensor:
    """[V]: log-probabilities [K] of some tokens, −inf for the others."""
    table = values.new_full((vocab_size,), NEVER)
    return table.scatter_reduce_(0, token_ids, values, "amax")


def _with_rows(table: Tensor, rows: Mapping[int, Tensor]) -> Tensor:
    """A table [B, V] with some rows replaced by others [V]."""
    if not rows:
        return table
    return table.index_copy(0, torch.tensor(list(rows), device=table.device), torch.stack(list(rows.values())))
