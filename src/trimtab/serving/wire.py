"""Answers in OpenAI's shapes: whole or in pieces, with log-probabilities, and with why each token was chosen.

`logprobs` are of the policy that was sampled from before temperature and filters ("mixed": base and guides) or of the
base alone, as the request asked; `policy` beside them says which.
"""

from __future__ import annotations

import codecs
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.answers import Alternative, Choice, Step, TokenTrace
from trimtab.core import Tokenizer
from trimtab.mixing.tracing import shares_of
from trimtab.models.tokenizing.spelling import bytes_of
from trimtab.serving.reading_calls import Grown
from trimtab.serving.writing_calls import CallWriter

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
    echo: bool = False
    """Whether the prompt stands in front of its answer."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A token whose part of the text is certain."""

    trace: TokenTrace
    added: bytes
    """What it adds to the text, in UTF-8; nothing where it is special or belongs to a stop string."""
    offset: int
    """Where in the text that begins, in characters; where it begins inside one, that one's place."""


@dataclass(slots=True)
class Writer:
    """Writes one answer, step by step."""

    style: Style
    index: int
    weights: Mapping[str, float]
    seed: int | None
    names: Mapping[str, str] = field(default_factory=dict)
    """Guides that the request brought -> what it calls them."""
    text: str = ""
    num_tokens: int = 0
    finish_reason: str | None = None
    traces: list[TokenTrace] = field(default_factory=list)
    listed: list[Listed] = field(default_factory=list)
    open: deque[Step] = field(default_factory=deque)
    """Steps whose tokens may yet be a part of a character or of a stop string."""
    characters: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))
    num_characters: int = 0
    calls: CallWriter | None = None
    """Reads calls of tools out of the answer; None: it is text alone."""
    grown: list[Grown] = field(default_factory=list)
    """What the last step added to text and calls, where there may be calls."""

    def start(self) -> Json:
        """The choice of a stream's first chunk."""
        body: Json = {"delta": {"role": "assistant", "content": ""}} if self.style.chat else {"text": ""}
        return {**self._choice(body, [], []), **self._said()}

    def piece(self, step: Step) -> Json | None:
        """The choice of a stream's chunk for a step; None where there is nothing to say."""
        traces, listed = self._take(step)
        delta = {"content": step.text} if self.calls is None else self.calls.delta(self.grown)
        if not (any(delta.values()) or traces or listed or self.finish_reason):
            return None
        body: Json = {"delta": delta} if self.style.chat else {"text": step.text}
        return self._choice(body, traces, listed)

    def take(self, step: Step) -> None:
        """A step of an answer that is sent whole."""
        traces, listed = self._take(step)
        self.traces += traces
        self.listed += listed

    def whole(self) -> Json:
        """The choice of a reply."""
        message: Json = {"role": "assistant", "content": self.text, "refusal": None}
        if self.calls is not None:
            message = self.calls.message()
        body: Json = {"message": message} if self.style.chat else {"text": self.text}
        choice = self._choice(body, self.traces, self.listed)
        return {**choice, **self._said(choice.get("guidance", {}))}

    def logprobs(self) -> Json:
        """The log-probabilities of all steps, as a completion has them."""
        return _completion_logprobs(self.listed, self.style)

    def _said(self, more: Json | None = None) -> Json:
        """What the answer ran with, for a request that speaks of guidance."""
        if not self.style.guided:
            return {}
        return {"guidance": {"weights": dict(self.weights), "seed": self.seed, **(more or {})}}

    def _take(self, step: Step) -> tuple[list[TokenTrace], list[Listed]]:
        """What to explain of a step, and the tokens whose part of the text it made certain."""
        if step.trace is not None and self.names:
            step = replace(step, trace=_called(step.trace, self.names))
        self.text += step.text
        self.num_tokens += step.token_id is not None
        self.finish_reason = None if step.finish_reason is None else _REASONS[step.finish_reason]
        if step.token_id is not None:
            self.open.append(step)
        closed = [(self.open.popleft(), added) for added in step.pieces]
        listed = [one for ended, added in closed if (one := self._list(ended, added)) is not None]
        if self.calls is not None:
            self._read(self.calls, closed)
        return [] if step.trace is None else [step.trace], listed

    def _read(self, calls: CallWriter, closed: Sequence[tuple[Step, bytes]]) -> None:
        """Read calls of tools in what became certain with a step."""
        self.grown = [one for ended, added in closed for one in calls.take(ended, added)]
        if self.finish_reason is not None:
            self.grown += calls.finish(is_cut=self.finish_reason == "length")
            if self.finish_reason == "stop" and calls.is_complete:
                self.finish_reason = "tool_calls"

    def _list(self, step: Step, added: bytes) -> Listed | None:
        """A token that adds so much; None for one without a trace, and for the one that ends a turn, which has no text
        and which OpenAI does not list either."""
        offset = self.num_characters
        self.num_characters += len(self.characters.decode(added))
        return None if step.trace is None or step.finish_reason == "eos" else Listed(step.trace, added, offset)

    def _choice(self, body: Json, traces: Sequence[TokenTrace], listed: Sequence[Listed]) -> Json:
        style = self.style
        logprobs: Json | None = None
        if style.num_rivals is not None:
            logprobs = (_chat_logprobs if style.chat else _completion_logprobs)(listed, style)
        choice = {"index": self.index, **body, "logprobs": logprobs, "finish_reason": self.finish_reason}
        if style.explain and traces:
            choice["guidance"] = {"tokens": [explained(trace, style.tokenizer, self.weights) for trace in traces]}
        return choice


def _called(trace: TokenTrace, names: Mapping[str, str]) -> TokenTrace:
    """A trace in which guides have the names that a request gave them."""

    def named(one: Alternative) -> Alternative:
        return replace(one, guide_scores={names.get(name, name): score for name, score in one.guide_scores.items()})

    return replace(trace, chosen=named(trace.chosen), alternatives=tuple(map(named, trace.alternatives)))


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
    placed = {**_placed(trace.chosen, tokenizer, shares), "kl": finite(trace.kl)}
    placed["alternatives"] = [_placed(rival, tokenizer, shares) for rival in trace.alternatives]
    if trace.choice is not None:
        placed["choice"] = _chosen(trace.choice, tokenizer)
    return placed


def _placed(one: Alternative, tokenizer: Tokenizer, shares: Mapping[int, Mapping[str, float]]) -> Json:
    return {
        "token": tokenizer.token_text(one.token_id),
        "token_id": one.token_id,
        "base_logprob": finite(one.base_logprob),
        "mixed_logprob": finite(one.mixed_logprob),
        "base_rank": one.base_rank,
        "mixed_rank": one.mixed_rank,
        "scores": {name: finite(score) for name, score in one.guide_scores.items()},
        "shares": {name: finite(share) for name, share in shares[one.token_id].items()},
    }


def _chosen(choice: Choice, tokenizer: Tokenizer) -> Json:
    gate = {"significance": choice.significance, "least_significance": choice.least_significance}
    return {
        "guide": choice.guide,
        "reason": choice.reason,
        "index": choice.index,
        **(gate if choice.significance is not None else {}),
        "trials": [
            {
                "token": tokenizer.token_text(trial.token_id),
                "token_id": trial.token_id,
                "logprob": finite(trial.logprob),
                "score": None if trial.score is None else finite(trial.score),
                "accepted": trial.accepted,
            }
            for trial in choice.trials
        ],
    }


def reader(policy: str) -> Callable[[Alternative], float]:
    """How to read a token's log-probability under a policy."""
    return (lambda one: one.base_logprob) if policy == "base" else (lambda one: one.mixed_logprob)


def top(trace: TokenTrace, policy: str, num: int) -> list[Alternative]:
    """The `num` most probable tokens of a policy, best first."""
    return sorted(trace.alternatives, key=reader(policy), reverse=True)[:num]


def _chat_logprobs(listed: Sequence[Listed], style: Style) -> Json:
    read, tokenizer = reader(style.policy), style.tokenizer

    def entry(one: Alternative, added: bytes) -> Json:
        return {"token": tokenizer.token_text(one.token_id), "logprob": finite(read(one)), "bytes": list(added)}

    content = [
        {
            **entry(one.trace.chosen, one.added),
            "top_logprobs": [
                entry(rival, bytes_of(tokenizer, rival.token_id))
                for rival in top(one.trace, style.policy, style.num_rivals or 0)
            ],
        }
        for one in listed
    ]
    return {"content": content, "refusal": None, "policy": style.policy}


def _completion_logprobs(listed: Sequence[Listed], style: Style) -> Json:
    read = reader(style.policy)
    return {
        "tokens": [style.tokenizer.token_text(one.trace.chosen.token_id) for one in listed],
        "token_logprobs": [finite(read(one.trace.chosen)) for one in listed],
        "top_logprobs": [_by_text(one.trace, style) for one in listed],
        "text_offset": [one.offset for one in listed],
        "policy": style.policy,
    }


def _by_text(trace: TokenTrace, style: Style) -> dict[str, float]:
    """Text -> log-probability of the best tokens, and of the drawn one (OpenAI: up to one more than was asked for).

    The drawn token has its own text; of others that read alike, all but the best are told apart by their ids.
    """
    read, others = reader(style.policy), {}
    for one in top(trace, style.policy, style.num_rivals or 0):
        if one.token_id != trace.chosen.token_id:
            others[one.token_id] = one
    texts = {trace.chosen.token_id: style.tokenizer.token_text(trace.chosen.token_id)}
    for token_id in others:
        text = style.tokenizer.token_text(token_id)
        while text in texts.values():
            text += f" (token {token_id})"
        texts[token_id] = text
    best = sorted([trace.chosen, *others.values()], key=read, reverse=True)
    return {texts[one.token_id]: finite(read(one)) for one in best}


def finite(value: float) -> float:
    """A number that JSON has."""
    return value if math.isfinite(value) else math.copysign(-_LOWEST, value)
