"""What an accept-reject agent sees and does while it learns, written down from within the decoder.

The actor takes part as a guide that selects: it looks at all candidates of a step, draws accept or reject for each, and
the first accepted is the token (the last, where it accepts none: MARA's training, arXiv 2505.19743). What it was asked
up to that token becomes transitions. A step with a single candidate is not asked about and leaves none.

The KL reward needs every candidate's verdict, so a look does not end with the first acceptance. On a CPU it still comes
in pieces, because rows have from two to forty candidates and a piece costs only the rows that have so many.

An episode's random numbers come from (seed, episode), its position and a candidate's id alone (`mixing.noise`). So
whom it shares a batch with changes nothing but the last bits of its states, and a candidate more or less at the edge
of the nucleus changes no other's verdict.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.core import Candidates, GuideSession, LanguageModel, ModelSession, Prompt, Selection, TokenIds
from trimtab.errors import ModelError, NotFiniteError, naming
from trimtab.guides.agent import AgentNetwork
from trimtab.mixing.noise import step_keys, uniforms
from trimtab.mixing.rules import FirstAccepted
from trimtab.training.agent.rewards import (
    base_logprobs,
    conditional_logprobs,
    decision_entropy,
    kl_rewards,
    step_kl,
)
from trimtab.training.agent.settings import AgentSettings

CPU_LOOKS = (8, 8, 24)
"""Candidates of each row in successive forward passes on a CPU."""


def seed_of(seed: int, purpose: str, index: int) -> int:
    """A seed of its own for one purpose and index of a run."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class Episode:
    """One answer and its T transitions in order; T is 0 where every step had a single candidate."""

    index: int
    text: str
    num_tokens: int
    states: Tensor
    """[T, D]."""
    actions: Tensor
    """[T] uint8: 1 for each token that was chosen, forced ones included."""
    kl_rewards: Tensor
    """[T] float32."""
    num_forced: int
    """Steps in which no candidate was accepted, so that the last was taken."""
    kl: float
    """KL(π_agent ‖ π_base) over the candidates, summed over the steps that were asked about, in nats."""
    entropy: float
    """The entropy of the decisions, summed over the transitions, in nats."""

    @property
    def num_asked(self) -> int:
        """Steps in which the actor was asked."""
        return int(self.actions.sum())


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one step's questions left: N rows, M transitions over all rows."""

    tapes: Tensor
    """[N] which episodes."""
    counts: Tensor
    """[N] transitions of each."""
    states: Tensor
    """[M, D], row after row."""
    actions: Tensor
    kl_rewards: Tensor
    forced: Tensor
    """[N] bool."""
    kl: Tensor
    """[N]."""
    entropy: Tensor
    """[N] summed over each row's transitions."""

    @staticmethod
    def of_nothing(hidden_size: int, dtype: torch.dtype) -> _Asked:
        """No row and no transition."""
        count, mark, number = (torch.zeros(0, dtype=kind) for kind in (torch.int64, torch.uint8, torch.float32))
        states = torch.zeros(0, hidden_size, dtype=dtype)
        return _Asked(count, count, states, mark, number, torch.zeros(0, dtype=torch.bool), number, number)


class _DrawnFirst(FirstAccepted):
    """`FirstAccepted` of training: the last candidate where none is accepted; every candidate is looked at."""

    __slots__ = ()
    lazy = False

    def __init__(self) -> None:
        super().__init__(fallback="last")


@dataclass(frozen=True, slots=True)
class _Look:
    """Some candidates of a step: N rows, k columns."""

    tapes: Tensor
    """[N] which episodes."""
    real: Tensor
    """[N, k] bool."""
    hidden: Tensor
    """[N, k, D]."""
    logprobs: Tensor
    log_odds: Tensor
    margins: Tensor


class Recorder:
    """The actor as a guide that selects by drawing, and writes down what it was asked.

    A guide's scores are otherwise functions of what they are asked about; these are drawn, once for each candidate.
    Requests must be added in the order of `indices`.
    """

    needs_hidden = True
    needs_context = False
    max_length = None
    weight = 0.5

    def __init__(self, network: AgentNetwork, settings: AgentSettings, indices: Sequence[int]) -> None:
        self._network = network
        self._settings = settings
        self._indices = indices
        on_cpu = next(network.parameters()).device.type == "cpu"
        looks = CPU_LOOKS if on_cpu else ()
        self.selection = Selection(_DrawnFirst(), settings.temperature, settings.top_k, settings.top_p, looks)
        self.seconds = 0.0
        """Time in the actor and in recording."""
        self._looks: list[_Look] = []
        self._asked: list[_Asked] = []
        self._seeds = [seed_of(settings.seed, "episode", index) for index in indices]
        self._positions = [0] * len(indices)
        self._is_open = False

    def bind(self, base: LanguageModel) -> Recorder:
        return self

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return base_ids

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        """The one session that is recorded. Raises ModelError for another: a recording begins at the beginning."""
        if self._is_open:
            raise ModelError(
                "The batch of these episodes failed, and what was recorded of it is not whole. Roll out anew."
            )
        self._is_open = True
        return _RecorderSession(self)

    def decide(self, tapes: Sequence[int], candidates: Candidates) -> Tensor:
        """[N, k] margins: log-odds of acceptance less those of a uniform number, so above 0 with the probability p."""
        hidden = candidates.hidden
        assert hidden is not None
        if hidden.is_cuda:
            torch.cuda.synchronize(hidden.device)  # the base's time is not the actor's
        started = time.perf_counter()
        logits = self._network(hidden)
        log_odds = logits[..., 1] - logits[..., 0]
        real = _real(candidates.token_ids).to(log_odds.device)
        margins: Tensor = log_odds - self._noise(tapes, candidates.token_ids, real).to(log_odds)
        logprobs = candidates.logprobs.to(log_odds)
        owners = torch.tensor(tapes, device=log_odds.device)
        self._looks.append(_Look(owners, real, hidden, logprobs, log_odds, margins))
        self.seconds += time.perf_counter() - started
        return margins

    def grow(self, tapes: Sequence[int]) -> None:
        """These episodes have another token."""
        self.end_step()
        for tape in tapes:
            self._positions[tape] += 1

    def end_step(self) -> None:
        """Write down what the looks of a step came to. Nothing, where there were none."""
        if self._looks:
            started = time.perf_counter()
            self._record(self._looks)
            self._looks = []
            self.seconds += time.perf_counter() - started

    def _noise(self, tapes: Sequence[int], token_ids: Tensor, real: Tensor) -> Tensor:
        """[N, k] logits of uniform numbers, a candidate's from its episode, position and id; 0 in padding."""
        keys = step_keys([(self._seeds[tape], self._positions[tape]) for tape in tapes], token_ids.device)
        return torch.logit(uniforms(keys, token_ids)).to(real.device).masked_fill_(~real, 0.0)

    def _record(self, looks: Sequence[_Look]) -> None:
        tapes = looks[0].tapes  # the first look is at every row
        rows = [torch.searchsorted(tapes, look.tapes) for look in looks]
        real = _side_by_side(rows, [look.real for look in looks], fill=False)
        log_odds, logprobs, margins = (
            _side_by_side(rows, [getattr(look, name) for look in looks], fill=0.0)
            for name in ("log_odds", "logprobs", "margins")
        )
        accepted = (margins > 0) & real
        any_accepted = accepted.any(dim=-1)
        chosen = torch.where(any_accepted, accepted.long().argmax(dim=-1), real.sum(dim=-1) - 1)
        columns = torch.arange(real.shape[1], device=real.device)
        taken, actions = columns <= chosen[:, None], columns == chosen[:, None]
        agent = conditional_logprobs(log_odds, real)
        base = base_logprobs(logprobs, real, self._settings.temperature)
        dtype: torch.dtype = getattr(torch, self._settings.state_dtype)
        asked = _Asked(
            tapes=tapes,
            counts=chosen + 1,
            states=_states(rows, [look.hidden for look in looks], taken).to(dtype),
            actions=actions[taken].to(torch.uint8),
            kl_rewards=kl_rewards(agent, base, self._settings.kl_weight)[taken],
            forced=~any_accepted,
            kl=step_kl(agent, base),
            entropy=(decision_entropy(log_odds) * taken).sum(dim=-1),
        )
        self._asked.append(replace(asked, **{name: getattr(asked, name).cpu() for name in _Asked.__slots__}))

    def episodes(self, answers: Sequence[tuple[str, int]]) -> tuple[Episode, ...]:
        """The episodes, given each one's text and number of tokens."""
        self.end_step()
        dtype: torch.dtype = getattr(torch, self._settings.state_dtype)
        nothing = _Asked.of_nothing(self._network.hidden_size, dtype)
        joined = _joined([nothing, *self._asked])
        if not bool(torch.isfinite(joined.states).all()):
            raise naming(
                NotFiniteError,
                "A state of the base is not finite as {0}. Give {state_dtype} float32, or a base whose weights are "
                "sound.",
                self._settings.state_dtype,
            )
        owner = joined.tapes.repeat_interleave(joined.counts)
        return tuple(
            _episode(index, text, num_tokens, joined, owner == tape, joined.tapes == tape)
            for tape, (index, (text, num_tokens)) in enumerate(zip(self._indices, answers, strict=True))
        )


def _joined(asked: Sequence[_Asked]) -> _Asked:
    return _Asked(**{name: torch.cat([getattr(step, name) for step in asked]) for name in _Asked.__slots__})


def _episode(index: int, text: str, num_tokens: int, asked: _Asked, mine: Tensor, steps: Tensor) -> Episode:
    """One episode of many: `mine` [M] are its transitions and `steps` [N] its steps, in the order of recording."""
    return Episode(
        index=index,
        text=text,
        num_tokens=num_tokens,
        states=asked.states[mine],
        actions=asked.actions[mine],
        kl_rewards=asked.kl_rewards[mine],
        num_forced=int(asked.forced[steps].sum()),
        kl=asked.kl[steps].double().sum().item(),
        entropy=asked.entropy[steps].double().sum().item(),
    )


class _RecorderSession:
    """Which rows of a batch are which episodes, by order of admission."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._rows: list[int] = []
        self._num_admitted = 0

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self._rows.extend(range(self._num_admitted, self._num_admitted + len(prompts)))
        self._num_admitted += len(prompts)

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        self._recorder.grow([self._rows[row] for row in rows.tolist()])

    def keep(self, rows: Tensor) -> None:
        self._recorder.end_step()
        self._rows = [self._rows[row] for row in rows.tolist()]

    def score(self, candidates: Candidates) -> Tensor:
        rows = range(self.num_rows) if candidates.rows is None else candidates.rows.tolist()
        return self._recorder.decide([self._rows[row] for row in rows], candidates)


def _side_by_side(rows: Sequence[Tensor], parts: Sequence[Tensor], *, fill: float | bool) -> Tensor:
    """[N, Σk] from parts [n, k] of the rows [n]; `fill` where a row has no part."""
    whole = []
    for at, part in zip(rows, parts, strict=True):
        column = part.new_full((len(rows[0]), part.shape[1]), fill)
        whole.append(column.index_copy(0, at, part))
    return torch.cat(whole, dim=1)


def _states(rows: Sequence[Tensor], parts: Sequence[Tensor], taken: Tensor) -> Tensor:
    """[M, D]: the taken [N, Σk] of parts [n, k, D] of the rows [n], row after row."""
    states, owners, start = [], [], 0
    for at, part in zip(rows, parts, strict=True):
        wanted = taken[at, start : start + part.shape[1]]
        states.append(part[wanted.to(part.device)])
        owners.append(at[:, None].expand_as(wanted)[wanted])
        start += part.shape[1]
    order = torch.cat(owners).argsort(stable=True)
    return torch.cat(states)[order.to(states[0].device)]


def _real(token_ids: Tensor) -> Tensor:
    """[N, K] bool: False for the repeats of the last candidate that fill up a shorter row (`selecting`)."""
    first = torch.ones_like(token_ids[:, :1], dtype=torch.bool)
    return torch.cat([first, token_ids[:, 1:] != token_ids[:, :-1]], dim=1)
