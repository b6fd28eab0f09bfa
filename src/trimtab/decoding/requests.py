"""One request while it is decoded, and the tensors that a batch of requests is decoded with."""

from __future__ import annotations

import math
import secrets
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.answers import Answer, Step, TokenTrace
from trimtab.core import KnownModel, Prompt, SamplingParams
from trimtab.decoding.text import TextStream
from trimtab.errors import OptionError, PromptError, naming
from trimtab.gates import WINDOW

if TYPE_CHECKING:
    from trimtab.constraining.matching import Matching


class Request:
    """A prompt, how it is to be decoded, and what has come of it so far."""

    def __init__(
        self,
        request_id: int,
        prompt: Prompt,
        prompt_ids: Sequence[int],
        guide_ids: Mapping[str, Sequence[int]],
        params: SamplingParams,
        weights: Mapping[str, float],
        max_new_tokens: int,
        model: KnownModel,
        matching: Matching | None = None,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_ids = tuple(prompt_ids)
        self.guide_ids = guide_ids
        self.params = params
        self.weights = weights
        self.max_new_tokens = max_new_tokens
        self.token_ids: list[int] = []
        self.trace: list[TokenTrace] = []
        self.significances: deque[float] = deque(maxlen=WINDOW)  # of its last tokens, for a gate of significance
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.matching = matching
        self.may_draft = True  # until a step fails that it takes part in
        self.seed = secrets.randbits(31) if params.seed is None else params.seed
        self.vocab_size = model.vocab_size
        self._stream = TextStream(model.tokenizer, params.stop, self.prompt_ids, num_unsearched=params.min_tokens)
        self._eos_ids: frozenset[int] = frozenset() if params.ignore_eos else frozenset(model.eos_ids)
        self.end_ids = self._eos_ids.union(params.stop_token_ids)

    def read_by(self, guide: str | None) -> tuple[int, ...]:
        """Every token so far, as a guide reads it (its prompt may be another) or, None, as the model does."""
        return (*(self.prompt_ids if guide is None else self.guide_ids[guide]), *self.token_ids)

    def ends(self, token_id: int) -> bool:
        """Whether an answer ends with this token."""
        return token_id in self.end_ids

    def push(self, token_id: int, trace: TokenTrace | None) -> Step:
        """Take a sampled token; sets `finish_reason` when it is the last."""
        self.token_ids.append(token_id)
        if trace is not None:
            self.trace.append(trace)
        if self.ends(token_id):
            text = self._stream.finish()
            reason = "eos" if token_id in self._eos_ids else "stop"
            return self._end(reason, token_id, trace, text, (*self._stream.pieces, b""))
        text = self._stream.push(token_id)
        pieces = self._stream.pieces
        if self._stream.stopped:
            return self._end("stop", token_id, trace, text, pieces)
        if len(self.token_ids) >= self.max_new_tokens:
            text += self._stream.finish()
            return self._end("length", token_id, trace, text, (*pieces, *self._stream.pieces))
        return Step(self.request_id, token_id, text, None, trace, pieces=pieces)

    def fail(self, error: Exception) -> Step:
        """End without a token."""
        self.finish_reason, self.error = "error", error
        try:
            text, pieces = self._stream.finish(), self._stream.pieces
        except Exception:  # the text itself may be what failed
            text, pieces = "", ()
        return Step(self.request_id, None, text, "error", None, error, pieces)

    def answer(self) -> Answer:
        assert self.finish_reason is not None, "the request is still running"
        return Answer(
            prompt=self.prompt,
            prompt_ids=self.prompt_ids,
            token_ids=tuple(self.token_ids),
            text=self._stream.text,
            finish_reason=self.finish_reason,
            weights=dict(self.weights),
            seed=self.seed,
            trace=tuple(self.trace) if self.params.trace else None,
            temperature=1.0 if self.params.temperature is None else self.params.temperature,
            error=self.error,
        )

    def _end(self, reason: str, token_id: int, trace: TokenTrace | None, text: str, pieces: tuple[bytes, ...]) -> Step:
        # An end-of-text flush may itself complete a stop string.
        self.finish_reason = "stop" if self._stream.stopped else reason
        return Step(self.request_id, token_id, text, self.finish_reason, trace, pieces=pieces)


@dataclass(frozen=True, slots=True)
class Columns:
    """The sampling parameters of a batch as tensors [B]; rebuilt when the batch changes."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    plausibility: Tensor
    repetition_penalty: Tensor

    @staticmethod
    def of(requests: Sequence[Request], device: torch.device) -> Columns:
        params = [request.params for request in requests]

        def column(values: Sequence[float | None], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return Columns(
            temperature=column([p.temperature for p in params], torch.float64),
            top_k=column([min(p.top_k or 0, sys.maxsize) for p in params], torch.int64),
            top_p=column([p.top_p for p in params], torch.float64),
            min_p=column([p.min_p for p in params]),
            plausibility=column([p.plausibility for p in params]),
            repetition_penalty=column([p.repetition_penalty for p in params], torch.float64),
        )


def check_named(params: SamplingParams, vocab_size: int) -> None:
    """Raise OptionError for a bias or a stop token that is not an id below `vocab_size`, the number of logits."""
    for name, token_ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        for token_id in token_ids:
            if token_id >= vocab_size:
                raise naming(
                    OptionError,
                    f"{{{name}}} names token {{0}}, which is not an id of the model's vocabulary; give 0 to {{1}}.",
                    token_id,
                    vocab_size - 1,
                )


def check_forced(token_ids: Sequence[int], vocab_size: int, whose: str = "the model") -> None:
    """Raise OptionError for a forced token that is not an id below `vocab_size`."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise OptionError(
                f"Forced token {token_id} is not an id of the vocabulary of {whose}; give 0 to {vocab_size - 1}."
            )


def room_for(num_prompt: int, limit: int | None, whose: str) -> float:
    """How many tokens may still be generated. Raises PromptError when there is room for none."""
    if limit is None:
        return math.inf
    if num_prompt >= limit:
        raise PromptError(
            f"The prompt has {num_prompt} tokens; {whose} holds {limit}, one of them for the answer. "
            "Shorten the prompt, or use a model with a longer context."
        )
    return limit - num_prompt
