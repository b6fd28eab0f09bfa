"""The requests that are decoded together: one step of all of them, and the sessions that remember their past.

One order, for every request: base log-probabilities -> constraint, least length -> plausibility mask -> gates ->
Σ weightᵢ · scoreᵢ in float32 -> rule -> bet -> penalties and biases -> temperature -> top-k, top-p, min-p of
the mixed policy -> draw. Nothing renormalises weights: at weight 1 and temperature 1 the policy is exactly
π_base · π_guide, normalised.

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
from trimtab.decoding.constraints import Restriction, restriction
from trimtab.decoding.drafts import Drafter, Drafters
from trimtab.decoding.failures import UNREADY, blame, broken_guide
from trimtab.decoding.gating import Gates, bets, open_places, with_bet
from trimtab.decoding.lanes import Lane, Rows, SelectingLane
from trimtab.decoding.penalties import penalised
from trimtab.decoding.places import Places
from trimtab.decoding.requests import Columns, Request
from trimtab.drafting import drafting_model, has_states_after_drafts
from trimtab.errors import TrimtabError
from trimtab.mixing.noise import step_keys
from trimtab.mixing.rules import NEVER, bad_rows, mix
from trimtab.mixing.sampling import apply_temperature, draw, final_policy, plausible
from trimtab.mixing.selecting import Walk
from trimtab.mixing.tracing import StepTensors, traces
from trimtab.params import MOST_DRAFTED


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step came to, by row. A row is in none of them whose prompt is not fed yet, or whose candidates a guide
    that selects has still to look at."""

    tokens: Mapping[int, Sequence[int]]
    """The next token of every row that can go on, and those after it that were drafted rightly."""
    failures: Mapping[int, TrimtabError]
    """Why a row cannot."""
    traces: Mapping[int, Sequence[TokenTrace]]
    """Why each of these tokens was chosen, where the request asks for it."""
    significances: Mapping[int, float]
    """What the gate of significance read of the first candidate, where the request has one and its guide was asked."""


@dataclass(slots=True)
class _Selected:
    """What guides that select came to, by place."""

    tokens: dict[int, int]
    mixed: dict[int, Tensor]
    """Place -> its rule's policy at temperature 1, [V]; like `final`, only for those with a trace."""
    final: dict[int, Tensor]
    choices: dict[int, tuple[str, Walk, int]]
    significances: dict[int, float]
    undecided: set[int]
    """Places whose candidates are looked at further in the next step."""


class Batch:
    """Running requests, a session of the model, and a lane for each guide."""

    def __init__(
        self,
        model: LanguageModel,
        guides: Mapping[str, Guide],
        rule: Rule,
        drafters: Mapping[str, Drafter] | None = None,
        *,
        max_drafted: int = MOST_DRAFTED,
    ) -> None:
        """A step guesses at most `max_drafted` tokens, over all requests."""
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
        self.drafters = Drafters(model, self._session, self._lanes, drafters or {}, max_drafted)
        self._sides: tuple[Rows[Session], ...] = (self._base, *self._lanes, *self.drafters.sides)
        self._columns: Columns | None = None
        self.capacity = Capacity(self._session, {lane.name: lane.session for lane in self._lanes})

    @property
    def num_rows(self) -> int:
        """Rows of the session that has the most of them: of the base's, one for each running request."""
        return max(side.num_rows for side in self._sides)

    def cost(self, request: Request) -> int:
        """How many tokens of a request have to be fed before its next one, the costliest side's."""
        lanes = [lane.unknown(request.read_by(lane.name)) for lane in self._lanes if request.weights[lane.name] != 0]
        drafter = self.drafters.unknown(request)
        return max(self._base.unknown(request.read_by(None)), *lanes, drafter, 1)

    def admit(self, new: Sequence[tuple[Request, int]]) -> None:
        """Take requests in, each with as many of its tokens fed as its number says."""
        self.running.extend(request for request, _ in new)
        self._columns = None
        self._base.admit([(request, request.read_by(None), share) for request, share in new])
        for lane in self._lanes:
            mine = [(request, share) for request, share in new if request.weights[lane.name] != 0]
            lane.admit([(request, request.read_by(lane.name), share) for request, share in mine])
        self.drafters.admit(new)

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
        """The next tokens of every row that is fed; those that it read ahead stay or go in `advance`.

        What is drafted decides nothing: each token is drawn from its own policy with its own number, and a draft only
        lets it be read before it was drawn. A row's run ends where the draft is not what is drawn.
        """
        waiting = set(self.filling())
        ready = [request for row, request in enumerate(self.running) if row not in waiting]
        if not ready:
            return Outcome({}, {}, {}, {})
        places = Places(self.running, self._read_ahead(ready))
        tensors, policy, gates, failures = self._policy(places, restriction(places, waiting))
        for row in waiting:
            failures[places.first(row)] = UNREADY
        keys = step_keys([(place.request.seed, place.position) for place in places], policy.device)
        selected = self._select(policy, keys, places, gates, failures)
        if failures:  # these end in this step; give them something that can be drawn from
            policy = policy.index_fill(0, torch.tensor(list(failures), device=policy.device), 0.0)
        forced = {index: token for index, place in enumerate(places) if (token := place.forced()) is not None}
        drawn, final = self._draw(policy, keys, places, selected.tokens)
        tokens = {**drawn, **selected.tokens, **forced}
        waiting = {*waiting, *(places[index].row for index in selected.undecided)}
        runs = {row: places.run(row, tokens, failures) for row in range(len(self.running)) if row not in waiting}
        tensors = replace(
            tensors,
            mixed=_with_rows(tensors.mixed, selected.mixed),
            final=None if final is None else _with_rows(final, selected.final),
            choices=selected.choices,
        )
        notes = self._trace(tensors, tokens, places, [index for run in runs.values() for index in run])
        return Outcome(
            {row: [tokens[index] for index in run] for row, run in runs.items() if run},
            {row: failures[places.first(row)] for row, run in runs.items() if not run},
            {row: [notes[index] for index in run] for row, run in runs.items() if run and run[0] in notes},
            {
                row: selected.significances[run[0]]
                for row, run in runs.items()
                if run and run[0] in selected.significances
            },
        )

    def _read_ahead(self, ready: Sequence[Request]) -> Mapping[int, Sequence[int]]:
        """Drafts of some requests, by request id; every side has read them."""
        drafts = self.drafters.propose(ready)
        if drafts:
            self._base.draft(drafts)
            for lane in self._lanes:
                lane.draft(drafts)
        return drafts

    def keep(self, requests: Sequence[Request]) -> None:
        """Go on with these of the running requests."""
        if len(requests) == len(self.running):
            return
        running = {request.request_id for request in requests}
        for side in self._sides:
            side.keep(running)
        self.drafters.keep(running)
        self.running = list(requests)
        self._columns = None

    def settle(self, tokens: Mapping[int, Sequence[int]]) -> None:
        """Take back what was drafted in vain: request id -> the tokens that it got."""
        self.drafters.note(tokens)
        for side in self._sides:
            side.settle({request_id: len(run) - 1 for request_id, run in tokens.items()})

    def advance(self, tokens: Mapping[int, Sequence[int]]) -> None:
        """Remember the tokens of each request that goes on, by request id; all but the last have been read."""
        for side in self._sides:
            side.advance({request_id: run[-1] for request_id, run in tokens.items()})

    def _policy(
        self, places: Places, restriction: Restriction
    ) -> tuple[StepTensors, Tensor, Gates, dict[int, TrimtabError]]:
        """The step's tables, the mixed and penalised policy [B, V], the gates, and the places that cannot go on."""
        base = self._base_logprobs(places)
        columns = self._columns_of(places, base.device)
        proposed = restriction.of(base)
        if any(request.params.plausibility for request in self.running):
            proposed = proposed.masked_fill(~plausible(proposed, columns.plausibility), -torch.inf)
        ids = torch.arange(base.shape[1], device=base.device).expand(len(base), -1)
        reads_states = any(lane.guide.needs_context for lane in self._tilting)
        context = self._context(places).to(base.device) if reads_states else None
        candidates = Candidates(ids, proposed, context=context, complete=True)
        gates = Gates(proposed, open_places(places, proposed))
        parts = {
            lane.name: part
            for lane in self._tilting
            if (part := lane.part(candidates, places, gates.acting.get(lane.name))) is not None
        }
        mixed = self._mixed(candidates, list(parts.values()))
        for name, (indices, slack) in bets(places, parts).items():
            at = torch.tensor(indices, device=base.device)
            others = [(scores[at], weights[at]) for other, (scores, weights) in parts.items() if other != name]
            mixed = with_bet(mixed, self._mixed(candidates.select(at), others), indices, slack)
        failures = {
            index: blame(index, base, parts, constrained=index in restriction.indices)
            for index in bad_rows(mixed).nonzero().flatten().tolist()
        }
        tensors = StepTensors(
            base,
            mixed,
            {name: scores for name, (scores, _) in parts.items()},
            {name: weights != 0 for name, (_, weights) in parts.items()},
        )
        return tensors, penalised(mixed, columns, places), gates, {**failures, **restriction.failures}

    def _mixed(self, candidates: Candidates, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """[B, V]: the rule's policy; a row without guides keeps the base's numbers bit for bit."""
        if not parts:
            return candidates.logprobs
        tilted = self._rule.policy(candidates, mix(candidates.logprobs, parts))
        guided = torch.stack([weights != 0 for _, weights in parts]).any(dim=0)
        return tilted if bool(guided.all()) else torch.where(guided[:, None], tilted, candidates.logprobs)

    def _base_logprobs(self, places: Places) -> Tensor:
        if not places.are_ahead:
            return self._session.logprobs()
        rows, drafted = places.tensors()
        return drafting_model(self._session).logprobs_after(rows, drafted)

    def _context(self, places: Places) -> Tensor:
        """[B, D]: the state before each place. Where the session has none after drafted tokens, no request that is read
        ahead has a guide that reads states (`Drafters.check`), and its row's last one stands there."""
        if places.are_ahead and has_states_after_drafts(self._session):
            return self._session.context_after(*places.tensors())
        context = self._session.context()
        return context[places.tensors()[0].to(context.device)] if places.are_ahead else context

    def _columns_of(self, places: Places, device: torch.device) -> Columns:
        if places.are_ahead:
            return Columns.of([place.request for place in places], device)
        self._columns = self._columns or Columns.of(self.running, device)
        return self._columns

    def _select(
        self,
        policy: Tensor,
        keys: Tensor,
        places: Places,
        gates: Gates,
        failures: dict[int, TrimtabError],
    ) -> _Selected:
        """The tokens of the places in which a guide selects, with what led to them; adds to `failures`."""
        selected = _Selected({}, {}, {}, {}, {}, set())
        columns = self._columns_of(places, policy.device)
        for lane in self._selecting:
            selection = lane.select(policy, columns, places, failures, gates)
            if selection is None:
                continue
            rows, walk, chosen = selection
            ids = walk.candidates.token_ids
            final = apply_temperature(chosen, columns.temperature[rows])
            tokens = ids.gather(1, draw(final, keys[rows], ids)[:, None]).squeeze(1)
            selected.tokens.update(zip(rows.tolist(), tokens.tolist(), strict=True))
            if walk.gate is not None:
                read = zip(rows.tolist(), walk.significance.tolist(), strict=True)
                selected.significances.update((row, value) for row, value in read if value == value)
            for index, row in enumerate(rows.tolist()):
                if index in walk.left:
                    selected.undecided.add(row)
                elif bool(walk.broken[index]):
                    failures[row] = broken_guide(lane.name)
                elif places[row].request.params.trace:
                    selected.choices[row] = (lane.name, walk, index)
                    selected.mixed[row] = _spread(chosen[index], ids[index], policy.shape[1])
                    selected.final[row] = _spread(final[index], ids[index], policy.shape[1])
        return selected

    def _draw(
        self, policy: Tensor, keys: Tensor, places: Places, without: Collection[int]
    ) -> tuple[dict[int, int], Tensor | None]:
        """A token for each place but those `without`, and what it was drawn from [B, V] where one has a trace."""
        columns = self._columns_of(places, policy.device)
        left = [index for index in range(len(places)) if index not in without]
        traced = any(request.params.trace for request in self.running)
        greedy = all(places[index].request.params.temperature == 0 for index in left)
        if greedy and not traced:
            best = policy.argmax(dim=-1).tolist()
            return {index: best[index] for index in left}, None
        rows = slice(None) if traced or not without else torch.tensor(left, device=policy.device)
        final = final_policy(
            policy[rows],
            temperature=columns.temperature[rows],
            top_k=columns.top_k[rows],
            top_p=columns.top_p[rows],
            min_p=columns.min_p[rows],
        )
        tokens = dict(zip(range(len(places)) if traced else left, draw(final, keys[rows]).tolist(), strict=True))
        return {index: tokens[index] for index in left}, final if traced else None

    def _trace(
        self, tensors: StepTensors, tokens: Mapping[int, int], places: Places, taken: Sequence[int]
    ) -> dict[int, TokenTrace]:
        """The traces of some places, those whose request asks for one."""
        rows = [index for index in taken if places[index].request.params.trace]
        if not rows:
            return {}
        notes = traces(
            tensors,
            [tokens[index] for index in rows],
            rows,
            [places[index].request.params.num_alternatives for index in rows],
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
