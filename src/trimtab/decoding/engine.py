"""What every engine that generates offers, whatever runs inside it: requests join, step by step tokens come.

`decoding.Decoder` is the built-in one; `engines.vllm.engine.VLLMEngine` runs inside vLLM. Commands and the server know
only this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from trimtab.answers import Answer, Step
from trimtab.constraint import Constraint
from trimtab.core import KnownModel, Prompt, SamplingParams, Selection
from trimtab.decoding.requests import Request
from trimtab.errors import OptionError, unknown_name
from trimtab.gates import check_gates
from trimtab.mixing.forms import check_negative, forms_of
from trimtab.params import NO_DRAFT
from trimtab.prompts import as_prompts, with_options
from trimtab.sessions import check_masks


class KnownGuide(Protocol):
    """What may be asked about a guide of any engine."""

    @property
    def weight(self) -> float:
        """In a request that does not name it."""

    @property
    def selection(self) -> Selection | None:
        """None: the guide tilts; else how it selects."""


class GenerationEngine(ABC):
    """Decodes any number of requests in one batch, each with its own weights, filters and seed.

    Who waits, and who is told of which step, is the same for every engine and stands here; a kind of engine says how a
    request is checked (`_request`), what one step of the batch brings (`_decoded`) and who runs.
    """

    model: KnownModel
    guides: Mapping[str, KnownGuide]
    max_rows: int
    has_plausibility = True
    """Whether a request may bring a plausibility mask."""
    has_forced = True
    """Whether a request may give its first tokens, and is told what the policy says of them."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()
        self._private: set[int] = set()  # requests of `answers`, whose steps nobody else gets
        self._held: list[Step] = []  # of other requests, made while `answers` stepped

    @property
    def num_running(self) -> int:
        """Requests that get tokens, and those that have ended with steps that nobody has taken yet."""
        return len(self._running_ids() | {step.request_id for step in self._held})

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    def add(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Queue a request; returns its id. Raises PromptError or OptionError for one that cannot run."""
        request = self._request(prompt, params or SamplingParams())
        self._waiting.append(request)
        return request.request_id

    def cancel(self, request_id: int) -> None:
        """Forget a request and free its row. Unknown or finished ids are ignored."""
        self._private.discard(request_id)
        self._held = [step for step in self._held if step.request_id != request_id]
        self._waiting = deque(request for request in self._waiting if request.request_id != request_id)
        if request_id in self._running_ids():
            self._stop(request_id)

    def step(self) -> list[Step]:
        """One step of the batch: the next tokens of its requests. One has none whose prompt is not fed yet, or whose
        candidates a guide that selects has still to look at.

        A request that fails ends with `finish_reason` "error"; the others go on, with the same tokens. Raises only
        where the device computes nothing any more, and what is not an `Exception`.
        """
        held, self._held = self._held, []
        return [*held, *self._told()]

    def answers(self, requests: Sequence[tuple[Prompt, SamplingParams]]) -> Iterator[Answer]:
        """Answer prompts, each in its own way, in their order; see `generate`.

        They share the batch with what `add` has queued, whose steps the next call of `step` returns.
        """
        return self._answers([self._request(prompt, params) for prompt, params in requests])

    def _answers(self, requests: Sequence[Request]) -> Iterator[Answer]:
        mine = {request.request_id for request in requests}
        self._private |= mine
        self._waiting.extend(requests)
        try:
            for request in requests:
                while request.finish_reason is None:
                    self._held += self._told()
                yield request.answer()
        finally:
            for request_id in mine:
                self.cancel(request_id)

    def _told(self) -> list[Step]:
        """One step of the batch, without what `answers` alone is told."""
        return [step for step in self._decoded() if step.request_id not in self._private]

    @abstractmethod
    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        """A request, checked, with an id of its own. Raises PromptError or OptionError for one that cannot run."""

    @abstractmethod
    def _decoded(self) -> list[Step]:
        """The steps of all requests in one step of the batch, waiting ones admitted first."""

    @abstractmethod
    def _running_ids(self) -> set[int]:
        """The requests that have a row."""

    @abstractmethod
    def _stop(self, request_id: int) -> None:
        """Free the row of a request that runs."""

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        weights: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float = 0.0,
        plausibility: float = 0.0,
        guide_plausibility: Mapping[str, float] | None = None,
        gates: Mapping[str, str] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        min_tokens: int = 0,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        seed: int | None = None,
        trace: bool = False,
        num_alternatives: int = 0,
        draft: str = NO_DRAFT,
        draft_tokens: int | None = None,
        constraint: Constraint | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Iterator[Answer]:
        """Answer prompts, in their order, each as soon as it and those before it are done.

        `weights` is one mapping for all prompts or one for each; prompt i draws from seed + i. `template_options` go to
        the chat template of each chat, under its own. All is checked first; what fails later has an `error`.
        """
        wanted = [with_options(prompt, template_options or {}) for prompt in as_prompts(prompts)]
        params = SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            plausibility=plausibility,
            guide_plausibility={} if guide_plausibility is None else guide_plausibility,
            gates={} if gates is None else gates,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias={} if logit_bias is None else logit_bias,
            min_tokens=min_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_token_ids=tuple(stop_token_ids),
            ignore_eos=ignore_eos,
            trace=trace,
            num_alternatives=num_alternatives,
            draft=draft,
            draft_tokens=draft_tokens,
            constraint=constraint,
        )
        asked = _each(params, _weights_of_each(weights, len(wanted)), seed)
        return self.answers(list(zip(wanted, asked, strict=True)))

    def close(self) -> None:  # noqa: B027  most engines hold nothing that outlives them
        """End what the engine runs elsewhere; it is of no more use."""

    def weights_of(self, params: SamplingParams) -> dict[str, float]:
        """The weight of every guide in a request.

        Raises OptionError for an unknown name, for a negative weight that means nothing (`forms.check_negative`), and
        for a plausibility mask on a guide that has no probabilities (`sessions.check_masks`) or a gate that does not go
        with its guide (`gates.check_gates`).
        """
        for name in params.weights:
            if name not in self.guides:
                raise unknown_name("guide", name, self.guides)
        check_masks(params.guide_plausibility, self.guides)
        check_gates(params.gates, self.guides)
        weights = {name: float(params.weights.get(name, guide.weight)) for name, guide in self.guides.items()}
        mask = params.plausibility if self.has_plausibility else None
        check_negative(weights, forms_of(self.guides), temperature=params.temperature, plausibility=mask)
        return weights


def _each(params: SamplingParams, weights: Sequence[Mapping[str, float]], seed: int | None) -> list[SamplingParams]:
    """The parameters of each prompt: its own weights, and the seed that follows from its place."""
    return [
        replace(params, weights=one, seed=None if seed is None else seed + index) for index, one in enumerate(weights)
    ]


def _weights_of_each(
    weights: Mapping[str, float] | Sequence[Mapping[str, float]] | None, num_prompts: int
) -> Sequence[Mapping[str, float]]:
    """The weights of each prompt. Raises OptionError for what is neither one mapping nor one for each prompt."""
    if weights is None or isinstance(weights, Mapping):
        return [weights or {}] * num_prompts
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise OptionError(
            f"weights is {weights!r:.100}; give a mapping from guides to numbers, or a list of one for each prompt."
        )
    if len(weights) != num_prompts:
        raise OptionError(f"There are {num_prompts} prompts and {len(weights)} mappings of weights; give one each.")
    return weights
