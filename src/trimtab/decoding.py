"""The decoding loop: a model proposes, guides score, a rule decides. The only one in the repository.

One order, for every request: base log-probabilities -> plausibility mask -> Σ weightᵢ · scoreᵢ in float32 -> rule ->
repetition penalty -> temperature -> top-k, top-p, min-p of the mixed policy -> draw. Nothing renormalises weights: at
weight 1 and temperature 1 the policy is exactly π_base · π_guide, normalised.

Where a guide that selects runs (an accept-reject agent), top-k, top-p and min-p of the tilted policy choose its
candidates at temperature 1, and its rule makes the policy that the temperature and the draw act on.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trimtab.answers import Answer, Step, TokenTrace
from trimtab.capacity import Capacity
from trimtab.core import Candidates, Guide, LanguageModel, Prompt, Rule, SamplingParams, Session
from trimtab.errors import OptionError, TrimtabError
from trimtab.failures import UNREADY, blame, broken_guide
from trimtab.generation import GenerationEngine
from trimtab.lanes import Lane, Rows, SelectingLane
from trimtab.pacing import Pace
from trimtab.prompts import encode_prompt
from trimtab.requests import Columns, Request, check_forced, room_for
from trimtab.rules import NEVER, Tilt, bad_rows, mix
from trimtab.sampling import apply_temperature, draw, penalise_repetition, plausible, sample
from trimtab.tracing import StepTensors, traces


class Decoder(GenerationEngine):
    """Decodes any number of requests in one batch, each with its own guides, weights, filters and seed.

    `guides` maps names to guides, each bound to the model here (VocabularyMismatchError or BaseMismatchError where one
    does not belong). At most `max_rows` requests run at a time; the others wait. With `prefill_chunk` a step
    feeds at most so many tokens of prompts, and fewer where they would take longer than the step does without them, so
    that a long one does not hold up those that run; no answer depends on it. With `max_cached_tokens` a request
    waits, too, while those that run might come to hold so many tokens in caches with it (see `capacity.Capacity`);
    one that would by itself is refused. A decoder belongs to one thread; several decoders may share one model.
    """

    guides: Mapping[str, Guide]

    def __init__(
        self,
        model: LanguageModel,
        guides: Mapping[str, Guide] | None = None,
        *,
        rule: Rule | None = None,
        max_rows: int = 64,
        prefill_chunk: int | None = None,
        max_cached_tokens: int | None = None,
    ) -> None:
        if max_rows < 1:
            raise OptionError(f"max_rows is {max_rows}; give at least 1.")
        if prefill_chunk is not None and prefill_chunk < 1:
            raise OptionError(f"prefill_chunk is {prefill_chunk}; give at least 1, or None: prompts at once.")
        if max_cached_tokens is not None and max_cached_tokens < 1:
            raise OptionError(f"max_cached_tokens is {max_cached_tokens}; give at least 1, or None: no limit.")
        self.model = model
        self.guides = {name: guide.bind(model) for name, guide in (guides or {}).items()}
        self.rule: Rule = rule or Tilt()
        self.max_rows = max_rows
        self.prefill_chunk = prefill_chunk
        self.max_cached_tokens = max_cached_tokens
        self._session = model.open()
        self._base = Rows(self._session)
        self._tilting: list[Lane] = []
        self._selecting: list[SelectingLane] = []
        for name, guide in self.guides.items():
            if guide.selection is None:
                if guide.needs_hidden:
                    raise OptionError(
                        f"Guide {name} tilts the whole vocabulary and needs the state after each token of it, which "
                        "would be a forward pass a token. Give it a selection (see trimtab.core.Selection)."
                    )
                self._tilting.append(Lane(name, guide, self._session))
            else:
                self._selecting.append(SelectingLane(name, guide, guide.selection, self._session))
        self._lanes: list[Lane] = [*self._tilting, *self._selecting]
        self._rows: tuple[Rows[Session], ...] = (self._base, *self._lanes)
        self.capacity = Capacity(self._session, {lane.name: lane.session for lane in self._lanes})
        self._pace = Pace()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._columns: Columns | None = None
        self._next_id = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Queue a request; returns its id. Raises PromptError or OptionError for one that cannot run."""
        request = self._request(prompt, params or SamplingParams())
        self.capacity.check(request, self.max_cached_tokens)
        self._next_id += 1
        self._waiting.append(request)
        return request.request_id

    def cancel(self, request_id: int) -> None:
        """Forget a request and free its row. Unknown or finished ids are ignored."""
        self._waiting = deque(request for request in self._waiting if request.request_id != request_id)
        if any(request.request_id == request_id for request in self._running):
            self._keep([request for request in self._running if request.request_id != request_id])

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """One token for each running request, new ones admitted first; none for one whose prompt is not fed yet.

        A request that fails (NaN, or every token forbidden) ends with `finish_reason` "error"; the others go on.
        """
        started = self._pace.clock()
        num_fed = self._admit()
        if not self._running:
            return []
        filling = self._filling()
        ready = {row: request for row, request in enumerate(self._running) if row not in filling}
        uniforms = torch.zeros(len(self._running), dtype=torch.float64)
        uniforms[list(ready)] = torch.tensor([request.uniform() for request in ready.values()], dtype=torch.float64)
        uniforms = uniforms.to(self.model.device)
        tensors, policy, drawn, failures = self._policy(uniforms, filling)
        forced = {row: token for row, request in ready.items() if (token := request.forced()) is not None}
        token_ids = self._sample(policy, uniforms, {**drawn, **forced})
        notes = self._trace(tensors, token_ids, {*failures, *filling})
        steps = [
            request.fail(failures[row]) if row in failures else request.push(token_ids[row], notes.get(row))
            for row, request in ready.items()
        ]
        self._advance({request.request_id: token_ids[row] for row, request in ready.items()})
        if ready:
            self._pace.note(self._pace.clock() - started, num_fed)
        return steps

    def answers(self, requests: Sequence[tuple[Prompt, SamplingParams]]) -> Iterator[Answer]:
        """Answer prompts, each in its own way, in their order; see `generate`."""
        own = Decoder(
            self.model,
            self.guides,
            rule=self.rule,
            max_rows=self.max_rows,
            prefill_chunk=self.prefill_chunk,
            max_cached_tokens=self.max_cached_tokens,
        )
        return own._answers([own._enqueue(prompt, params) for prompt, params in requests])

    def _answers(self, requests: Sequence[Request]) -> Iterator[Answer]:
        for request in requests:
            while request.finish_reason is None:
                self.step()
            if request.error is not None:
                raise request.error
            yield request.answer()

    def _enqueue(self, prompt: Prompt, params: SamplingParams) -> Request:
        self.add(prompt, params)
        return self._waiting[-1]

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        weights = self.weights_of(params)
        params = self._resolved(params, weights)
        check_forced(params.forced, self.model.vocab_size)
        prompt_ids = encode_prompt(self.model, prompt)
        room = room_for(len(prompt_ids), self.model.max_length, "the model")
        guide_ids: dict[str, Sequence[int]] = {}
        for name, guide in self.guides.items():
            if weights[name] != 0:
                guide_ids[name] = guide.prompt_ids(prompt, prompt_ids)
                room = min(room, room_for(len(guide_ids[name]), guide.max_length, f"guide {name}"))
        limit = min(params.max_new_tokens, room)
        return Request(self._next_id, prompt, prompt_ids, guide_ids, params, weights, int(limit), self.model)

    def _resolved(self, params: SamplingParams, weights: Mapping[str, float]) -> SamplingParams:
        """The parameters with what the guide that selects asks for, or the usual defaults, where they say nothing."""
        active = [lane for lane in self._selecting if weights[lane.name] != 0]
        if len(active) > 1:
            names = " and ".join(lane.name for lane in active[:2])
            raise OptionError(f"Guides {names} both select the token; give all but one of them weight 0.")
        if active and params.forced:
            raise OptionError(f"Guide {active[0].name} selects the token, so none can be forced; force none.")
        for lane in active:
            lane.selection.rule.check_weight(weights[lane.name])
        asked = active[0].selection if active else None
        heat, top_k, top_p = (asked.temperature, asked.top_k, asked.top_p) if asked else (1.0, 0, 1.0)
        return replace(
            params,
            temperature=heat if params.temperature is None else params.temperature,
            top_k=top_k if params.top_k is None else params.top_k,
            top_p=top_p if params.top_p is None else params.top_p,
        )

    def _admit(self) -> int:
        """Let waiting requests join and feed what the step may of the prompts; returns how many tokens of them."""
        filling = self._filling()
        budget = most = self.prefill_chunk or sys.maxsize
        if self.prefill_chunk and len(filling) < len(self._running):
            budget = most = self._pace.limit(self.prefill_chunk)
        for row, left in filling.items():
            share = min(left, budget)
            for rows in self._rows:
                rows.fill(self._running[row], share)
            budget -= share
        new: list[tuple[Request, int]] = []
        while self._waiting and budget > 0 and len(self._running) + len(new) < self.max_rows:
            beside = [*self._running, *(request for request, _ in new)]
            if not self.capacity.fits(self._waiting[0], beside, self.max_cached_tokens):
                break
            request = self._waiting.popleft()
            share = min(budget, self._cost(request))
            new.append((request, share))
            budget -= share
        if not new:
            return most - budget
        self._base.admit([(request, request.prompt_ids, share) for request, share in new])
        for lane in self._lanes:
            mine = [(request, share) for request, share in new if request.weights[lane.name] != 0]
            lane.admit([(request, request.guide_ids[lane.name], share) for request, share in mine])
        self._running.extend(request for request, _ in new)
        self._columns = None
        return most - budget

    def _cost(self, request: Request) -> int:
        """How many tokens of its prompts have to be fed, as a step's budget counts them."""
        mine = [lane.unknown(ids) for lane in self._lanes if (ids := request.guide_ids.get(lane.name))]
        return max(self._base.unknown(request.prompt_ids), *mine, 1)

    def _filling(self) -> dict[int, int]:
        """Row -> how many tokens of its prompts are still to be fed, where there are any."""
        if self.prefill_chunk is None:
            return {}
        left = {row: max(rows.left(request) for rows in self._rows) for row, request in enumerate(self._running)}
        return {row: num for row, num in left.items() if num}

    def _policy(
        self, uniforms: Tensor, filling: Mapping[int, int]
    ) -> tuple[StepTensors, Tensor, dict[int, int], dict[int, TrimtabError]]:
        """The step's tables, the policy [B, V], tokens where a guide selects, and the rows that cannot go on."""
        base = self._session.logprobs()
        columns = self._columns = self._columns or Columns.of(self._running, base.device)
        proposed = base
        if any(request.params.plausibility for request in self._running):
            proposed = base.masked_fill(~plausible(base, columns.plausibility), -torch.inf)
        ids = torch.arange(base.shape[1], device=base.device).expand(len(base), -1)
        context = self._session.context() if any(lane.guide.needs_context for lane in self._tilting) else None
        candidates = Candidates(ids, proposed, context=context, complete=True)
        positions = {request.request_id: row for row, request in enumerate(self._running)}
        parts = {lane.name: part for lane in self._tilting if (part := lane.part(candidates, positions)) is not None}
        mixed = proposed
        if parts:
            tilted = self.rule.policy(candidates, mix(base, list(parts.values())))
            # A row without guides keeps the base's numbers bit for bit.
            guided = torch.stack([weights != 0 for _, weights in parts.values()]).any(dim=0)
            mixed = tilted if bool(guided.all()) else torch.where(guided[:, None], tilted, proposed)
        failures = self._failures(base, mixed, parts)
        policy = self._penalised(mixed, columns)
        tensors = StepTensors(
            base,
            mixed,
            {name: scores for name, (scores, _) in parts.items()},
            {name: weights != 0 for name, (_, weights) in parts.items()},
        )
        drawn: dict[int, int] = {}
        for row in filling:
            failures.setdefault(row, UNREADY)
        if self._selecting:
            tensors, drawn = self._select(tensors, policy, uniforms, positions, failures)
        if failures:  # these rows end in this step; give them something that can be drawn from
            policy = policy.index_fill(0, torch.tensor(list(failures), device=policy.device), 0.0)
        return tensors, policy, drawn, failures

    def _select(
        self,
        tensors: StepTensors,
        policy: Tensor,
        uniforms: Tensor,
        positions: Mapping[int, int],
        failures: dict[int, TrimtabError],
    ) -> tuple[StepTensors, dict[int, int]]:
        """The tokens of the rows in which a guide selects, and the step with what led to them; adds to `failures`."""
        columns = self._columns
        assert columns is not None
        mixed, choices = tensors.mixed, {}
        drawn: dict[int, int] = {}
        for lane in self._selecting:
            selected = lane.select(policy, columns, positions, failures)
            if selected is None:
                continue
            rows, found, chosen = selected
            places = draw(apply_temperature(chosen, columns.temperature[rows]), uniforms[rows])
            tokens = found.candidates.token_ids.gather(1, places[:, None]).squeeze(1)
            drawn.update(zip(rows.tolist(), tokens.tolist(), strict=True))
            for index, row in enumerate(rows.tolist()):
                if bool(found.broken[index]):
                    failures[row] = broken_guide(lane.name)
                elif self._running[row].params.trace:
                    choices[row] = (lane.name, found, index)
            if choices:
                table = mixed.new_full((len(rows), mixed.shape[1]), NEVER)
                table.scatter_reduce_(1, found.candidates.token_ids, chosen, "amax")
                mixed = mixed.index_copy(0, rows, table)
        return replace(tensors, mixed=mixed, choices=choices), drawn

    def _penalised(self, policy: Tensor, columns: Columns) -> Tensor:
        if all(request.params.repetition_penalty == 1 for request in self._running):
            return policy
        seen = torch.zeros_like(policy, dtype=torch.bool)
        for row, request in enumerate(self._running):
            if request.params.repetition_penalty != 1:
                seen[row, torch.tensor([*request.prompt_ids, *request.token_ids], device=seen.device)] = True
        return penalise_repetition(policy, seen, columns.repetition_penalty)

    def _failures(
        self, base: Tensor, mixed: Tensor, parts: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[int, TrimtabError]:
        rows = bad_rows(mixed).nonzero().flatten().tolist()
        return {row: blame(row, base, parts) for row in rows}

    def _sample(self, policy: Tensor, uniforms: Tensor, drawn: Mapping[int, int]) -> list[int]:
        """A token for each row: `drawn` where a guide has selected, else from the policy."""
        columns = self._columns
        assert columns is not None
        left = [row for row in range(len(self._running)) if row not in drawn]
        if not left:
            return [drawn[row] for row in range(len(self._running))]
        rows = slice(None) if not drawn else torch.tensor(left, device=policy.device)
        chosen = sample(
            policy[rows],
            uniforms[rows],
            temperature=columns.temperature[rows],
            top_k=columns.top_k[rows],
            top_p=columns.top_p[rows],
            min_p=columns.min_p[rows],
        )
        tokens = {**drawn, **dict(zip(left, chosen.tolist(), strict=True))}
        return [tokens[row] for row in range(len(self._running))]

    def _trace(self, tensors: StepTensors, token_ids: Sequence[int], without: Collection[int]) -> dict[int, TokenTrace]:
        rows = [row for row, request in enumerate(self._running) if request.params.trace and row not in without]
        if not rows:
            return {}
        params = [self._running[row].params for row in rows]
        notes = traces(
            tensors,
            [token_ids[row] for row in rows],
            rows,
            [how.temperature or 0.0 for how in params],
            [how.num_alternatives for how in params],
        )
        return dict(zip(rows, notes, strict=True))

    def _advance(self, tokens: Mapping[int, int]) -> None:
        self._keep([request for request in self._running if request.finish_reason is None])
        for rows in self._rows:
            rows.advance(tokens)

    def _keep(self, requests: list[Request]) -> None:
        if len(requests) == len(self._running):
            return
        running = {request.request_id for request in requests}
        for rows in self._rows:
            rows.keep(running)
        self._running = requests
        self._columns = None
