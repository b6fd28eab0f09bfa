"""The decoding loop: a model proposes, guides score, a rule decides. The only one in the repository.

What a step does is `batch`'s; who takes part in it is decided here, and what becomes of an error that nobody foresaw.
Requests are the truth and sessions a memory of them: after such an error the memory is thrown away, the requests that
caused it are found and ended, and the others are admitted anew, prompt and answer so far, to go on with the same
tokens as if nothing had been.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from trimtab.answers import Step
from trimtab.constraining.entry import matching_of
from trimtab.core import Guide, LanguageModel, Prompt, Rule, SamplingParams
from trimtab.decoding.batch import Batch, Outcome
from trimtab.decoding.capacity import Capacity
from trimtab.decoding.drafts import Drafter, bound_drafters
from trimtab.decoding.engine import GenerationEngine
from trimtab.decoding.failures import is_lost, unexpected, without_frames
from trimtab.decoding.pacing import Pace
from trimtab.decoding.requests import Request, check_forced, check_named, room_for
from trimtab.errors import OptionError
from trimtab.mixing.rules import Tilt
from trimtab.params import MOST_DRAFTED, NO_DRAFT
from trimtab.prompts import check_readable, encode_prompt, num_readable

log = logging.getLogger(__name__)

CALM_STEPS = 64
"""Sound steps after which earlier faults count no more, and the batch may grow again."""


class Decoder(GenerationEngine):
    """Decodes any number of requests in one batch, each with its own guides, weights, filters and seed.

    `guides` maps names to guides, each bound to the model here (VocabularyMismatchError or BaseMismatchError where one
    does not belong). At most `max_rows` requests run at a time; the others wait. With `prefill_chunk` a step
    feeds at most so many tokens of prompts, and fewer where they would take longer than the step does without them, so
    that a long one does not hold up those that run; no answer depends on it. With `max_cached_tokens` a request
    waits, too, while those that run might come to hold so many tokens in caches with it (see `capacity.Capacity`);
    one that would by itself is refused. `drafters` are small models of the same vocabulary that guess next tokens for
    requests whose `draft` names one, and cheaper copies of guides, by the guides' names, that guess in their stead (see
    `decoding.drafts`): answers are the same with drafts, and may come sooner. A decoder belongs to one thread; several
    decoders may share one model.

    >>> from trimtab import ARM, Decoder, TabularModel
    >>> base, expert = TabularModel.random(27, seed=0), TabularModel.random(27, seed=1)
    >>> decoder = Decoder(base, {"expert": ARM(expert)})
    >>> weights = [{"expert": 0.0}, {"expert": 2.0}]  # one batch, another weight for each request
    >>> plain, steered = decoder.generate(["ab", "ab"], weights=weights, max_new_tokens=5, ignore_eos=True, seed=1)
    >>> len(plain.token_ids), plain.text == steered.text
    (5, False)
    """

    model: LanguageModel
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
        drafters: Mapping[str, Drafter] | None = None,
    ) -> None:
        super().__init__()
        if max_rows < 1:
            raise OptionError(f"max_rows is {max_rows}; give at least 1.")
        if prefill_chunk is not None and prefill_chunk < 1:
            raise OptionError(f"prefill_chunk is {prefill_chunk}; give at least 1, or None: prompts at once.")
        if max_cached_tokens is not None and max_cached_tokens < 1:
            raise OptionError(f"max_cached_tokens is {max_cached_tokens}; give at least 1, or None: no limit.")
        self.model = model
        self.guides = {name: guide.bind(model) for name, guide in (guides or {}).items()}
        for name, guide in self.guides.items():
            if guide.selection is None and guide.needs_hidden:
                raise OptionError(
                    f"Guide {name} tilts the whole vocabulary and needs the state after each token of it, which "
                    "would be a forward pass a token. Give it a selection (see trimtab.Selection)."
                )
        self.drafters = bound_drafters(model, drafters or {}, self.guides)
        self.rule: Rule = rule or Tilt()
        self.max_rows = max_rows
        self.prefill_chunk = prefill_chunk
        self.max_cached_tokens = max_cached_tokens
        self._pace = Pace()
        self._batch: Batch | None = None  # made when it is needed
        self._joining: list[Request] = []  # neither waiting nor running yet
        self._next_id = 0
        self._room = max_rows  # how many requests may run now
        self._num_faults = 0  # lately, with nobody to blame
        self._num_calm = 0  # steps since the last fault
        self._last_fault = ""

    @property
    def num_rows(self) -> int:
        """Rows that are remembered; those of requests that have left are none of them."""
        return 0 if self._batch is None else self._batch.num_rows

    @property
    def max_drafted(self) -> int:
        """How many tokens a step guesses at most, over all requests: one for each row, or one request's most."""
        return max(self.max_rows, MOST_DRAFTED)

    @property
    def capacity(self) -> Capacity:
        """What the requests that run hold in the caches of the model and its guides."""
        return self._present_batch().capacity

    def _running_ids(self) -> set[int]:
        return {request.request_id for request in self._running}

    def _stop(self, request_id: int) -> None:
        assert self._batch is not None, "it has a row"
        rest = [request for request in self._running if request.request_id != request_id]
        try:
            self._batch.keep(rest)
        except Exception as error:
            self._report(error, rest)
            self._requeue(rest)

    @torch.inference_mode()
    def _decoded(self) -> list[Step]:
        """The steps of all requests in one step of the batch.

        A request fails by NaN, every token forbidden, or any other error in the model, a guide or elsewhere that it
        causes. The others get their tokens in the next step if not in this one.
        """
        steps: list[Step] = []
        fault: Exception | None = None
        try:
            outcome = self._decode()
            if outcome is not None:
                self._calm_down(outcome)
                steps = self._push(outcome)
                self._advance(outcome)
        except Exception as error:
            fault = error
        except BaseException:  # Ctrl-C: whoever goes on with this decoder finds it sound
            self._requeue(self._unfinished())
            raise
        # Outside of the handler, where nothing holds the frames of the step any more.
        return steps if fault is None else [*steps, *self._contain(fault, grown=bool(steps))]

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        weights = self.weights_of(params)
        params = self._resolved(params, weights)
        prompt_ids = encode_prompt(self.model, prompt)
        check_forced(params.forced, min(self.model.vocab_size, num_readable(self.model)))
        check_named(params, self.model.vocab_size)
        room = room_for(len(prompt_ids), self.model.max_length, "the model")
        guide_ids: dict[str, Sequence[int]] = {}
        for name, guide in self.guides.items():
            if weights[name] != 0:
                guide_ids[name] = guide.prompt_ids(prompt, prompt_ids)
                if (limit := getattr(guide, "num_readable", None)) is not None:
                    check_readable(guide_ids[name], limit, whose=f"guide {name}")
                    check_forced(params.forced, limit, whose=f"guide {name}")
                room = min(room, room_for(len(guide_ids[name]), guide.max_length, f"guide {name}"))
        longest = int(min(params.max_new_tokens, room))
        matching = matching_of(self.model, params)
        request = Request(self._next_id, prompt, prompt_ids, guide_ids, params, weights, longest, self.model, matching)
        if params.draft != NO_DRAFT:
            self._present_batch().drafters.check(request)
        if self.max_cached_tokens is not None:
            self.capacity.check(request, self.max_cached_tokens)
        self._next_id += 1
        return request

    def _resolved(self, params: SamplingParams, weights: Mapping[str, float]) -> SamplingParams:
        """The parameters with what the guide that selects asks for, or the usual defaults, where they say nothing."""
        selections = {name: guide.selection for name, guide in self.guides.items() if weights[name] != 0}
        active = {name: selection for name, selection in selections.items() if selection is not None}
        names = list(active)
        if len(active) > 1:
            raise OptionError(
                f"Guides {' and '.join(names[:2])} both select the token; give all but one of them weight 0."
            )
        if active and params.forced:
            raise OptionError(f"Guide {names[0]} selects the token, so none can be forced; force none.")
        for name, selection in active.items():
            selection.rule.check_weight(weights[name])
        asked = next(iter(active.values()), None)
        temperature, top_k, top_p = (asked.temperature, asked.top_k, asked.top_p) if asked else (1.0, 0, 1.0)
        return replace(
            params,
            temperature=temperature if params.temperature is None else params.temperature,
            top_k=top_k if params.top_k is None else params.top_k,
            top_p=top_p if params.top_p is None else params.top_p,
        )

    def _new_batch(self) -> Batch:
        return Batch(self.model, self.guides, self.rule, self.drafters, max_drafted=self.max_drafted)

    def _present_batch(self) -> Batch:
        """The batch, made where there is none (at first, and after a fault)."""
        if self._batch is None:
            self._batch = self._new_batch()
        return self._batch

    @property
    def _running(self) -> Sequence[Request]:
        return () if self._batch is None else self._batch.running

    def _unfinished(self) -> list[Request]:
        """Whom a fault of this step may be about."""
        joining = [request for request in self._joining if request not in self._running]
        return [request for request in (*self._running, *joining) if request.finish_reason is None]

    def _decode(self) -> Outcome | None:
        """Admit who may run, and the batch's next tokens; None: nobody runs."""
        started = self._pace.clock()
        batch = self._present_batch()
        budget = most = self._feedable(batch)
        if self.prefill_chunk is not None:
            budget = batch.fill(budget)
        new: list[tuple[Request, int]] = []
        num_free = min(self._room, self.max_rows) - len(batch.running)
        while self._waiting and budget > 0 and len(new) < num_free:
            beside = [*batch.running, *(request for request, _ in new)]
            if not batch.capacity.fits(self._waiting[0], beside, self.max_cached_tokens):
                break
            self._joining.append(self._waiting.popleft())
            share = min(budget, batch.cost(self._joining[-1]))
            new.append((self._joining[-1], share))
            budget -= share
        if new:
            batch.admit(new)
            self._joining = []
        if not batch.running:
            return None
        outcome = batch.step()
        if outcome.tokens:
            self._pace.note(self._pace.clock() - started, most - budget)
        return outcome

    def _feedable(self, batch: Batch) -> int:
        """How many tokens of prompts this step may feed: fewer where others wait for their tokens."""
        if self.prefill_chunk is None:
            return sys.maxsize
        is_awaited = len(batch.filling()) < len(batch.running)
        return self._pace.limit(self.prefill_chunk) if is_awaited else self.prefill_chunk

    def _push(self, outcome: Outcome) -> list[Step]:
        """Tell the requests of their tokens. What fails here, a text that cannot be made, is its request's alone."""
        steps = []
        for row, request in enumerate(self._running):
            if row in outcome.failures:
                steps.append(request.fail(outcome.failures[row]))
            elif row in outcome.tokens:
                tokens = outcome.tokens[row]
                traces = outcome.traces.get(row, [None] * len(tokens))
                try:
                    for token, trace in zip(tokens, traces, strict=True):
                        steps.append(request.push(token, trace))
                        if request.finish_reason is not None:  # what was read ahead of the end is nobody's
                            break
                    if row in outcome.significances:
                        request.significances.append(outcome.significances[row])
                except Exception as error:
                    self._report(error, [request])
                    steps.append(request.fail(unexpected(without_frames(error))))
        return steps

    def _advance(self, outcome: Outcome) -> None:
        batch = self._batch
        assert batch is not None
        tokens = {batch.running[row].request_id: run for row, run in outcome.tokens.items()}
        batch.settle(tokens)
        batch.keep([request for request in batch.running if request.finish_reason is None])
        batch.advance(tokens)

    def _contain(self, fault: Exception, *, grown: bool) -> list[Step]:
        """End those whom a fault came from; the others wait at the head of the queue, to be admitted anew.

        `grown`: the fault came after the requests had been told of their tokens.
        """
        requests = self._unfinished()
        for request in requests:
            request.may_draft = False
        if not requests and self._waiting:  # not even an empty batch can be made
            requests = [self._waiting.popleft()]
        self._report(fault, requests)
        self._requeue(requests)
        has_grown, self._num_calm = self._num_calm > 0, 0
        if is_lost(self.model.device):
            raise fault
        guilty = self._first_guilty(requests) or ({} if grown else self._give_way(requests, fault, has_grown))
        self._waiting = deque(request for request in self._waiting if request not in guilty)
        return [request.fail(unexpected(error)) for request, error in guilty.items()]

    def _first_guilty(self, requests: Sequence[Request]) -> dict[Request, Exception]:
        """A request that fails by itself, with its error; of several the newest. None, where they fail only together.

        It is looked for by halves. There may be more: then the next step fails as well. Who fails alone is tried once
        more: another error than the one that is looked for may have struck it and passed.
        """
        if len(requests) == 1:
            error = self._trial(requests) and self._trial(requests)
            return {} if error is None else {requests[0]: error}
        for half in _halves(requests):
            found = self._first_guilty(half) if len(half) == 1 or self._trial(half) is not None else {}
            if found:
                return found
        return {}

    def _trial(self, requests: Sequence[Request]) -> Exception | None:
        """The error of a step of these requests in a batch of their own, from which nothing is kept."""
        try:
            batch, budget = self._new_batch(), self.prefill_chunk or sys.maxsize
            batch.admit([(request, min(budget, batch.cost(request))) for request in requests])
            while batch.filling():
                batch.fill(budget)
            outcome = batch.step()
            tokens = {requests[row].request_id: run for row, run in outcome.tokens.items()}
            batch.settle(tokens)
            batch.advance(tokens)
        except Exception as error:
            return without_frames(error)
        return None

    def _give_way(self, requests: Sequence[Request], fault: Exception, has_grown: bool) -> dict[Request, Exception]:
        """What to do about a fault that is nobody's: try again; then with fewer rows; then end the one that is left.

        So it ends, whatever it is: one that is left and has not grown since the last fault never will. Memory that is
        out is such a fault: fewer rows need less.
        """
        self._num_faults += 1
        if self._num_faults == 1:
            return {}
        if len(requests) == 1:
            return {} if has_grown else {requests[0]: fault}
        self._room = max(1, len(requests) // 2)
        return {}

    def _calm_down(self, outcome: Outcome) -> None:
        self._num_calm += bool(outcome.tokens)
        if self._num_calm >= CALM_STEPS and (self._num_faults or self._room < self.max_rows):
            self._num_calm, self._num_faults = 0, 0
            self._room = min(self.max_rows, 2 * self._room)

    def _report(self, fault: Exception, requests: Sequence[Request]) -> None:
        """Log a fault, with its traceback where the one before came from elsewhere; then forget its frames."""
        frames = traceback.extract_tb(fault.__traceback__)
        origin = f"{type(fault).__name__} {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        shown = None if origin and origin == self._last_fault else fault
        self._last_fault = origin
        ids = ", ".join(str(request.request_id) for request in requests)
        log.error("a decoding step of requests %s failed: %.500s", ids, repr(fault), exc_info=shown)
        without_frames(fault)

    def _requeue(self, requests: Sequence[Request]) -> None:
        """Forget the batch; these of its requests are admitted anew before all others."""
        self._batch, self._joining = None, []
        self._waiting.extendleft(reversed(requests))


def _halves(requests: Sequence[Request]) -> tuple[Sequence[Request], Sequence[Request]]:
    """Requests that have no token yet, then the others, where there are both; else the newer and the older half."""
    num_proven = sum(bool(request.token_ids) for request in requests)
    cut = num_proven if 0 < num_proven < len(requests) else len(requests) // 2
    ordered = sorted(requests, key=lambda request: not request.token_ids)
    return ordered[cut:], ordered[:cut]
