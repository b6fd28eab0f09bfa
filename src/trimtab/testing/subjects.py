"""What the laws of sessions are checked on: rows that grow together, and what can be read from them."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from trimtab.core import Candidates, Guide, GuideSession, LanguageModel, ModelSession, Prompt
from trimtab.drafting import drafting, drafting_model, drafts, has_states_after_drafts
from trimtab.errors import OptionError
from trimtab.prompts import encode_prompt
from trimtab.testing.laws import PURE, ROWS, WELL_FORMED, LawViolation, same

Row: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""A sequence as the base reads it and as the guide reads it."""

ONCE = ("peek", "all", "some")
"""What is asked about a row at most once in a call; log-probabilities and contexts of a row may be asked for twice."""


class ModelRows:
    """A session of a model, and what can be read from it."""

    readings: tuple[str, ...] = ("logprobs", "context", "peek")

    def __init__(self, model: LanguageModel, probe: Tensor, beside: ModelSession | None = None) -> None:
        self.session: ModelSession = model.open(beside)
        self.probe = probe

    @property
    def num_rows(self) -> int:
        return self.session.num_rows

    def admit(self, rows: Sequence[Row]) -> None:
        self.session.admit([base for base, _ in rows])

    def advance(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        self.session.advance(torch.tensor(rows, dtype=torch.int64), torch.tensor(token_ids, dtype=torch.int64))

    def keep(self, rows: Sequence[int]) -> None:
        self.session.keep(torch.tensor(rows, dtype=torch.int64))

    @property
    def drafts(self) -> bool:
        return drafts(self.session)

    def draft(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        drafting(self.session).draft(torch.tensor(rows), torch.tensor(token_ids))

    def settle(self, counts: Sequence[int]) -> None:
        drafting(self.session).settle(torch.tensor(counts))

    def read_after(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """[N, V] log-probabilities of (row, drafted tokens before) pairs."""
        rows, drafted = torch.tensor(places).T
        return drafting_model(self.session).logprobs_after(rows, drafted).clone()

    def states_after(self, places: Sequence[tuple[int, int]]) -> Tensor | None:
        """[N, D] states at such places; None of a session that does not say them."""
        if not has_states_after_drafts(self.session):
            return None
        rows, drafted = torch.tensor(places).T
        return self.session.context_after(rows, drafted).clone()

    @property
    def by_rows(self) -> tuple[str, ...]:
        """What can be read of some rows."""
        return self.readings

    def read(self, reading: str, rows: Sequence[int] | None = None) -> Tensor:
        """[N, ...] float32: a reading of all rows, or of those that are named."""
        verb: Callable[..., Tensor] = getattr(self.session, reading)
        ids = (self.probe.expand(self.num_rows if rows is None else len(rows), -1),) if reading == "peek" else ()
        if rows is None:
            return verb(*ids).clone()
        some = torch.tensor(rows, dtype=torch.int64)
        try:
            inspect.signature(verb).bind(*ids, some)
        except TypeError:
            raise LawViolation(ROWS, f"{reading} cannot be asked about some rows; give it a parameter `rows`") from None
        return verb(*ids, some).clone()

    def candidates(self, guide: Guide, probe: Tensor | None) -> Candidates:
        """The whole vocabulary, or `probe` [K] sorted best first, with what the guide asks for."""
        base = self.session.logprobs()
        ids = torch.arange(base.shape[1], device=base.device) if probe is None else probe.to(base.device)
        ids = ids.expand(len(base), -1)
        if probe is not None:
            ids = ids.gather(1, base.gather(1, ids).argsort(dim=1, descending=True, stable=True))
        hidden = self.session.peek(ids) if guide.needs_hidden else None
        context = self.session.context() if guide.needs_context else None
        return Candidates(ids, base.gather(1, ids), hidden, context, complete=probe is None)


class GuideRows:
    """A guide's session and its base's, growing together. Readings: scores of all tokens, of some."""

    def __init__(self, guide: Guide, model: LanguageModel, probe: Tensor, beside: ModelSession | None = None) -> None:
        self.guide = guide
        self.base = ModelRows(model, probe)
        self.session: GuideSession = guide.open(beside)
        self.probe = probe
        self.readings: tuple[str, ...] = ("some",) if guide.needs_hidden else ("all", "some")

    @property
    def num_rows(self) -> int:
        return self.session.num_rows

    def admit(self, rows: Sequence[Row]) -> None:
        self.base.admit(rows)
        self.session.admit([guide_ids for _, guide_ids in rows])

    def advance(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        self.base.advance(rows, token_ids)
        self.session.advance(torch.tensor(rows, dtype=torch.int64), torch.tensor(token_ids, dtype=torch.int64))

    def keep(self, rows: Sequence[int]) -> None:
        self.base.keep(rows)
        self.session.keep(torch.tensor(rows, dtype=torch.int64))

    @property
    def drafts(self) -> bool:
        tilts = self.guide.selection is None and not self.guide.needs_hidden
        has_states = not self.guide.needs_context or has_states_after_drafts(self.base.session)
        return tilts and has_states and self.base.drafts and drafts(self.session)

    def draft(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        self.base.draft(rows, token_ids)
        drafting(self.session).draft(torch.tensor(rows), torch.tensor(token_ids))

    def settle(self, counts: Sequence[int]) -> None:
        self.base.settle(counts)
        drafting(self.session).settle(torch.tensor(counts))

    def read_after(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """[N, V] scores of all tokens, of (row, drafted tokens before) pairs."""
        base = self.base.read_after(places)
        rows, drafted = torch.tensor(places).T
        ids = torch.arange(base.shape[1], device=base.device).expand(len(base), -1)
        context = self.base.states_after(places) if self.guide.needs_context else None
        candidates = Candidates(ids, base, context=context, complete=True, rows=rows, drafted=drafted)
        return self.session.score(candidates).clone()

    def states_after(self, places: Sequence[tuple[int, int]]) -> Tensor | None:
        """None: states are the base's affair."""
        return None

    @property
    def by_rows(self) -> tuple[str, ...]:
        """What can be read of some rows: the scores of a guide that selects; others are asked about all of theirs."""
        return () if self.guide.selection is None else self.readings

    def read(self, reading: str, rows: Sequence[int] | None = None) -> Tensor:
        """[N, V] or [N, K] scores of all rows or of those that are named, columns in the order of the ids."""
        return self.score(None if reading == "all" else self.probe, rows)

    def score(self, probe: Tensor | None, rows: Sequence[int] | None = None) -> Tensor:
        candidates = self.base.candidates(self.guide, probe)
        if rows is not None:
            picked = torch.tensor(rows, dtype=torch.int64)
            candidates = replace(candidates.select(picked), rows=picked, base_rows=picked)
        given = candidates.token_ids.clone(), candidates.logprobs.clone()
        scores = self.session.score(candidates).clone()
        if not (torch.equal(given[0], candidates.token_ids) and torch.equal(given[1], candidates.logprobs)):
            raise LawViolation(PURE, "score wrote into the candidates it was given")
        if scores.shape != candidates.token_ids.shape:
            shapes = f"{tuple(scores.shape)} for candidates of shape {tuple(candidates.token_ids.shape)}"
            raise LawViolation(WELL_FORMED, f"the scores have shape {shapes}")
        if probe is None:
            return scores
        order = candidates.token_ids.argsort(dim=1)
        return scores.gather(1, order.to(scores.device))


@dataclass(frozen=True)
class Subject:
    """What the session laws are checked on."""

    make: Callable[..., ModelRows | GuideRows]
    starts: list[Row]
    num_ids: int
    """Ids that may continue a row, from 0 on."""
    num_steps: int
    tolerance: float
    seed: int

    @property
    def readings(self) -> tuple[str, ...]:
        return self.make().readings

    def fresh(self, rows: Sequence[Row]) -> ModelRows | GuideRows:
        """A new session with these rows and no past."""
        session = self.make()
        session.admit(rows)
        return session

    def tokens(self, count: int, step: int = 0) -> list[int]:
        """Random tokens, the same for the same arguments."""
        return random.Random(f"{self.seed} {count} {step}").choices(range(self.num_ids), k=count)

    def same(self, law: str, when: str, found: ModelRows | GuideRows, expected: ModelRows | GuideRows) -> None:
        """Raise unless two sessions read the same."""
        for reading in found.readings:
            same(law, f"{reading} {when}", found.read(reading), expected.read(reading), self.tolerance)


def longer(row: Row, token_id: int) -> Row:
    return (*row[0], token_id), (*row[1], token_id)


def choose_prompts(
    num_ids: int, prompts: Sequence[Prompt] | None, num_steps: int, rooms: Sequence[int], seed: int
) -> list[Prompt]:
    """The prompts given, or random ones that leave room for the steps in each of `rooms`."""
    if prompts is not None:
        if len(prompts) < 2:
            raise OptionError(f"There are {len(prompts)} prompts; give at least 2, of unequal length.")
        return list(prompts)
    room = min(rooms, default=8 + num_steps) - num_steps - 1
    rng = random.Random(seed)
    return [tuple(rng.choices(range(num_ids), k=max(1, min(length, room)))) for length in (3, 1, 7, 2)]


def encode_starts(model: LanguageModel, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    return [tuple(encode_prompt(model, prompt)) for prompt in prompts]


def choose_probe(num_ids: int, num_candidates: int, seed: int) -> Tensor:
    """[K] distinct ids, ascending."""
    count = min(num_candidates, num_ids)
    return torch.tensor(sorted(random.Random(seed).sample(range(num_ids), count)))
