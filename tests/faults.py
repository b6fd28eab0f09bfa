"""Errors planted in every stage of a step, raised where one request takes part: for the decoder's tests and a server's.

The request that carries the fault is known in each stage by what it brings there: its prompt's first token, the table
that the model has for it, its temperature, its threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.core import Candidates, Guide, ModelSession, SamplingParams, Selection, TokenIds
from trimtab.decoding import batch, lanes, penalties
from trimtab.decoding.decoder import Decoder
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import ARM
from trimtab.mixing.rules import RandomAccepted, Tilt
from trimtab.models.tabular import LetterTokenizer, TabularModel, TabularSession

V = 12
FIRST, MARK, WORD = 11, 9, 10
"""The first token of the faulty request's prompt, a token whose table tells its rows, one that only it generates."""
TEMPERATURE, THRESHOLD, RIVALS, PENALTY = 0.77, 0.25, 5, 1.25

Trigger = Callable[[bool], None]
"""Called in the planted stage: whether the faulty request takes part. It raises, or does not."""


class PlantedError(RuntimeError):
    """Nobody foresaw it."""


def always(taking_part: bool) -> None:
    """The fault of one request, whenever it is there."""
    if taking_part:
        raise PlantedError("planted")


class Nth:
    """A fault that happens once, at the nth time, and is nobody's."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, taking_part: bool) -> None:
        self.left -= 1
        if self.left == 0:
            raise PlantedError("planted, once")


def _is_there(table: Tensor) -> bool:
    """Whether a row of the model's, mixed or not, is the faulty request's; a filter may have dropped the mark."""
    return bool(((table[:, MARK] < -55) & (table[:, MARK] > -torch.inf)).any())


class FaultySession(TabularSession):
    """A session that fails in one verb."""

    def __init__(self, model: TabularModel, verb: str, trigger: Trigger) -> None:
        super().__init__(model)
        self._verb, self._trigger = verb, trigger

    def _pass(self, verb: str, prefixes: Sequence[TokenIds]) -> None:
        if verb == self._verb:
            self._trigger(any(prefix[0] == FIRST for prefix in prefixes))

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        super().admit(prompts[:1])  # half done when it fails
        self._pass("admit", prompts)
        super().admit(prompts[1:])

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        super().advance(rows[:1], token_ids[:1])
        self._pass("advance", self._some(rows))
        super().advance(rows[1:], token_ids[1:])

    def keep(self, rows: Tensor) -> None:
        before = list(self._rows)
        super().keep(rows)
        self._pass("keep", before)

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        self._pass("logprobs", self._some(rows))
        return super().logprobs(rows)

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        self._pass("peek", self._some(rows))
        return super().peek(token_ids, rows)

    def known(self, prompt: TokenIds) -> int:
        self._pass("known", [prompt])
        return 0


class FaultyTokenizer(LetterTokenizer):
    """A tokenizer that fails at one token."""

    trigger: Trigger = staticmethod(lambda taking_part: None)

    def decode(self, token_ids: TokenIds) -> str:
        self.trigger(WORD in token_ids)
        return super().decode(token_ids)


class FaultyModel(TabularModel):
    """A model that says which rows are the faulty request's, and whose sessions fail in one verb."""

    def __init__(self, seed: int, verb: str = "", trigger: Trigger = always) -> None:
        plain = TabularModel.random(V, seed=seed)

        def logits(prefix: tuple[int, ...]) -> Tensor:
            table = plain.next_logprobs(prefix).clone()
            table[WORD] = -torch.inf
            table[MARK] = -60.0 if prefix[0] == FIRST else -8.0
            return table

        super().__init__(logits, V)
        self.tokenizer = FaultyTokenizer(V)
        self.verb, self.trigger = verb, trigger

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        return FaultySession(self, self.verb, self.trigger)


class FaultyRule(Tilt):
    """A rule that fails."""

    trigger: Trigger = staticmethod(always)

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        type(self).trigger(_is_there(candidates.logprobs))
        return super().policy(candidates, scores)


class FaultyChoice(RandomAccepted):
    """A rule of candidates that fails."""

    trigger: Trigger = staticmethod(always)

    def weigh(self, scores: Tensor, weights: Tensor) -> Tensor:
        type(self).trigger(bool((weights == THRESHOLD).any()))
        return super().weigh(scores, weights)


VERBS = ("admit", "advance", "keep", "logprobs", "known")
PATCHED: dict[str, tuple[object, str, Callable[..., bool]]] = {
    "candidates": (lanes, "survivors", lambda policy, **how: _is_there(policy)),
    "columns": (batch.Columns, "of", lambda requests, device: any(r.prompt_ids[0] == FIRST for r in requests)),
    "plausibility": (batch, "plausible", lambda base, alpha: _is_there(base)),
    "a guide's plausibility": (lanes, "plausible", lambda policy, alpha: _is_there(policy)),
    "mix": (batch, "mix", lambda base, parts: _is_there(base)),
    "failures": (batch, "bad_rows", lambda mixed: _is_there(mixed)),
    "penalty": (penalties, "penalise_repetition", lambda policy, seen, penalty: bool((penalty == PENALTY).any())),
    "filters": (batch, "final_policy", lambda policy, **how: bool((how["temperature"] == TEMPERATURE).any())),
    "draw": (batch, "draw", lambda policy, keys, ids=None: ids is None and _is_there(policy)),
    "trace": (batch, "traces", lambda step, ids, rows, rivals: RIVALS in rivals),
}
"""Stage -> a function of the step, and whether the faulty request is among what it is called with."""
STAGES = (
    *(f"model {verb}" for verb in (*VERBS, "peek")),
    *(f"guide {verb}" for verb in VERBS),
    *("rule", "choice", "text"),
    *PATCHED,
)


def planted(stage: str, trigger: Trigger, patch: pytest.MonkeyPatch, **options: Any) -> Decoder:
    """A decoder with a tilting guide and an agent, in which one stage fails; "" for none."""
    where, _, verb = stage.partition(" ")
    model = FaultyModel(0, verb if where == "model" else "", trigger)
    choice, rule = FaultyChoice() if stage == "choice" else RandomAccepted(), FaultyRule() if stage == "rule" else None
    patch.setattr(FaultyChoice, "trigger", staticmethod(trigger))
    patch.setattr(FaultyRule, "trigger", staticmethod(trigger))
    if stage == "text":
        model.tokenizer.trigger = trigger  # type: ignore[union-attr]
    if stage in PATCHED:
        place, name, is_there = PATCHED[stage]
        sound = getattr(place, name)

        def faulty(*args: Any, **how: Any) -> Any:
            trigger(is_there(*args, **how))
            return sound(*args, **how)

        patch.setattr(place, name, staticmethod(faulty) if isinstance(place, type) else faulty)
    torch.manual_seed(0)
    network = AgentNetwork(model.hidden_size, 8).eval().requires_grad_(False)
    guide = ARM(FaultyModel(1, verb if where == "guide" else "", trigger))
    guides: dict[str, Guide] = {"arm": guide, "agent": Agent(network, selection=Selection(choice, top_k=6))}
    return Decoder(model, guides, rule=rule, **options)


def sound_requests() -> list[tuple[list[int], SamplingParams]]:
    """Requests of several kinds, with and without guides, agents, filters and traces."""
    kinds: list[dict[str, Any]] = [
        {"weights": {"arm": 1.0, "agent": 0.0}},
        {"weights": {"arm": 0.0, "agent": 0.5}},
        {"weights": {"arm": 0.5, "agent": 0.0}, "top_p": 0.8, "temperature": 0.9, "trace": True, "num_alternatives": 3},
        {"weights": {"arm": 0.0, "agent": 0.0}, "repetition_penalty": 1.3, "plausibility": 0.01},
        {"weights": {"arm": 1.5, "agent": 0.4}, "trace": True},
    ]
    return [
        ([1 + index, 2, 3], SamplingParams(max_new_tokens=9, ignore_eos=True, seed=index, **kind))
        for index, kind in enumerate(kinds)
    ]


def faulty_request(stage: str) -> tuple[list[int], SamplingParams]:
    """The request that takes part in every stage, in its own way."""
    selects = stage in ("choice", "candidates", "model peek")
    how = SamplingParams(
        weights={"arm": 1.0, "agent": THRESHOLD if selects else 0.0},
        forced=() if selects else (1, WORD),
        temperature=TEMPERATURE,
        plausibility=1e-35,
        guide_plausibility={"arm": 1e-35},
        repetition_penalty=PENALTY,
        trace=True,
        num_alternatives=RIVALS,
        max_new_tokens=9,
        ignore_eos=True,
        seed=7,
    )
    return [FIRST, 2, 3], how
