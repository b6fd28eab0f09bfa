"""Answers in OpenAI's shapes: whole or in pieces, with log-probabilities, and with why each token was chosen.

`logprobs` are of the policy that was sampled from before temperature and filters ("mixed": base and guides) or of the
base alone, as the request asked; `policy` beside them says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.answers import Alternative, Choice, Step, TokenTrace
from trimtab.core import Tokenizer
from trimtab.tracing import shares_of

Json = dict[str, Any]

_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
_LOWEST = -9999.0
"""What OpenAI sends for a log-probability of −inf, which JSON has not."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a request wants its answers written."""

    tokenizer: Tokenizer
    chat: bool
    num_rivals: int | None = None
    """Top log-probabilities of each token; None: no log-probabilities."""
    policy: str = "mixed"
    guided: bool = False
    """Whether the request speaks of guidance, so that the answer says what it ran with."""
    explain: bool = False


@dataclass(slots=True)
class Writer:
    """Writes one answer, step by step."""

    style: Style
    index: int
    weights: Mapping[str, float]
    seed: int | None
    text: str = ""
    num_tokens: int = 0
    finish_reason: str | None = None
    notes: list[tuple[Step, int]] = field(default_factory=list)
    """Steps with a trace, and where in the text each token begins."""

    def start(self) -> Json:
        """The choice of a stream's first chunk."""
        body: Json = {"delta": {"role": "assistant", "content": ""}} if self.style.chat else {"text": ""}
        return {**self._choice(body, []), **self._said()}

    def piece(self, step: Step) -> Json | None:
        """The choice of a stream's chunk for a step; None where there is nothing to say."""
        noted = self._take(step)
        if not (step.text or noted or self.finish_reason):
            return None
        body: Json = {"delta": {"content": step.text}} if self.style.chat else {"text": step.text}
        return self._choice(body, [noted] if noted else [])

    def take(self, step: Step) -> None:
        """A step of an answer that is sent whole."""
        noted = self._take(step)
        if noted:
            self.notes.append(noted)

    def whole(self) -> Json:
        """The choice of a reply."""
        message = {"role": "assistant", "content": self.text, "refusal": None}
        choice = self._choice({"message": message} if self.style.chat else {"text": self.text}, self.notes)
        return {**choice, **self._said(choice.get("guidance", {}))}

    def _said(self, more: Json | None = None) -> Json:
        """What the answer ran with, for a request that speaks of guidance."""
        if not self.style.guided:
            return {}
        return {"guidance": {"weights": dict(self.weights), "seed": self.seed, **(more or {})}}

    def _take(self, step: Step) -> tuple[Step, int] | None:
        offset = len(self.text)
        self.text += step.text
        self.num_tokens += step.token_id is not None
        self.finish_reason = None if step.finish_reason is None else _REASONS[step.finish_reason]
        return None if step.trace is None else (step, offset)

    def _choice(self, body: Json, notes: Sequence[tuple[Step, int]]) -> Json:
        style = self.style
        # The token that ends a turn has no text, so OpenAI does not list it either.
        listed = [(step.trace, offset) for step, offset in notes if step.trace and step.finish_reason != "eos"]
        logprobs: Json | None = None
        if style.num_rivals is not None:
            logprobs = (_chat_logprobs if style.chat else _completion_logprobs)(listed, style)
        choice = {"index": self.index, **body, "logprobs": logprobs, "finish_reason": self.finish_reason}
        if style.explain and notes:
            choice["guidance"] = {
                "tokens": [explained(step.trace, style.tokenizer, self.weights) for step, _ in notes if step.trace]
            }
        return choice


def usage(num_prompt_tokens: int, num_tokens: int) -> Json:
    """OpenAI's account of tokens."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def explained(trace: TokenTrace, tokenizer: Tokenizer, weights: Mapping[str, float]) -> Json:
    """Why a token was chosen, by guides at these weights."""
    shares = shares_of(trace, weights)
    told = {**_placed(trace.chosen, tokenizer, shares), "kl": _finite(trace.kl)}
    told["alternatives"] = [_placed(rival, tokenizer, shares) for rival in trace.alternatives]
    if trace.choice is not None:
        told["choice"] = _chosen(trace.choice, tokenizer)
    return told


def _placed(one: Alternative, tokenizer: Tokenizer, shares: Mapping[int, Mapping[str, float]]) -> Json:
    return {
        "token": tokenizer.token_text(one.token_id),
        "token_id": one.token_id,
        "base_logprob": _finite(one.base_logprob),
        "mixed_logprob": _finite(one.mixed_logprob),
        "base_rank": one.base_rank,
        "mixed_rank": one.mixed_rank,
        "scores": {name: _finite(score) for name, score in one.guide_scores.items()},
        "shares": {name: _finite(share) for name, share in shares[one.token_id].items()},
    }


def _chosen(choice: Choice, tokenizer: Tokenizer) -> Json:
    return {
        "guide": choice.guide,
        "reason": choice.reason,
        "index": choice.index,
        "trials": [
            {
                "token": tokenizer.token_text(trial.token_id),
                "token_id": trial.token_id,
                "logprob": _finite(trial.logprob),
                "score": None if trial.score is None else _finite(trial.score),
                "accepted": trial.accepted,
            }
            for trial in choice.trials
        ],
    }


def _reader(policy: str) -> Callable[[Alternative], float]:
    return (lambda one: one.base_logprob) if policy == "base" else (lambda one: one.mixed_logprob)


def _top(trace: TokenTrace, style: Style) -> list[tuple[str, float]]:
    """The most probable tokens of the policy asked for, best first."""
    read = _reader(style.policy)
    best = sorted(trace.alternatives, key=read, reverse=True)[: style.num_rivals or 0]
    return [(style.tokenizer.token_text(one.token_id), _finite(read(one))) for one in best]


def _chat_logprobs(notes: Sequence[tuple[TokenTrace, int]], style: Style) -> Json:
    read = _reader(style.policy)
    content = []
    for trace, _ in notes:
        token = style.tokenizer.token_text(trace.chosen.token_id)
        top = [{"token": text, "logprob": value, "bytes": _bytes(text)} for text, value in _top(trace, style)]
        own = {"token": token, "logprob": _finite(read(trace.chosen)), "bytes": _bytes(token)}
        content.append({**own, "top_logprobs": top})
    return {"content": content, "refusal": None, "policy": style.policy}


def _completion_logprobs(notes: Sequence[tuple[TokenTrace, int]], style: Style) -> Json:
    read = _reader(style.policy)
    return {
        "tokens": [style.tokenizer.token_text(trace.chosen.token_id) for trace, _ in notes],
        "token_logprobs": [_finite(read(trace.chosen)) for trace, _ in notes],
        "top_logprobs": [dict(_top(trace, style)) for trace, _ in notes],
        "text_offset": [offset for _, offset in notes],
        "policy": style.policy,
    }


def _bytes(text: str) -> list[int] | None:
    """UTF-8 of a token's text; None for a token that is a part of a character."""
    return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.copysign(-_LOWEST, value)
