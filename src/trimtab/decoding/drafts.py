"""Who guesses the next tokens of a request, so that the base reads several in one pass.

A draft decides nothing. Each token of an answer is drawn from the policy at its own position with the number that
belongs to its seed, position and id (`mixing.noise`), whether or not it was guessed before; a guess that is the token
drawn spares a pass, another costs the time of reading it. So a request's tokens are the same with drafts and without,
which the rejection rule of speculative sampling (Leviathan et al., arXiv 2211.17192) does not promise: it keeps the
distribution only. A model that drafts draws with the same numbers, which makes it agree with the policy more often
than numbers of its own would (drafter-invariant coupling, Daliri et al., arXiv 2408.07978).

Five kinds: *lookup* continues as an earlier place of prompt and answer did that ended alike; what is *certain* is the
text that a request's constraint leaves no choice of; tokens that are *forced* are known; a *guide* that is a smaller
model of its own, or a cheaper copy of a guide in its stead, says what it would steer to by itself; another small
*model* of the same vocabulary answers. How long a draft is follows what was accepted lately and what reading it
costs (`lengths`, `costs`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from trimtab.caches import caches_of
from trimtab.core import Guide, LanguageModel, ModelSession, Session
from trimtab.decoding.constraints import Certain, acceptable
from trimtab.decoding.costs import StepCost
from trimtab.decoding.lanes import Lane, Rows, SelectingLane
from trimtab.decoding.lengths import MOST, Appetite
from trimtab.decoding.lookup import Lookup
from trimtab.decoding.requests import Columns, Request
from trimtab.drafting import Foreseeing, drafting_model, drafts, has_states_after_drafts
from trimtab.errors import OptionError, VocabularyMismatchError, about, naming, unknown_name
from trimtab.mixing.noise import step_keys
from trimtab.mixing.sampling import draw, final_policy, normalised
from trimtab.params import CERTAIN_DRAFT, FORCED_DRAFT, GUIDE_DRAFT, LOOKUP, NO_DRAFT
from trimtab.prompts import check_same_vocabulary, num_readable
from trimtab.sessions import SessionView

_OF_ITSELF = (LOOKUP, CERTAIN_DRAFT, FORCED_DRAFT)
"""Drafts that a request makes for itself, without a model."""
Drafter: TypeAlias = LanguageModel | Guide
"""A small model that answers, or a copy of a guide that is cheaper to run than the guide."""


class Forced:
    """Drafts of the tokens that a request forces."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids

    def next(self, answer: Sequence[int], num: int) -> list[int]:
        """Up to `num` tokens that follow an answer so far."""
        return list(self._token_ids[len(answer) : len(answer) + num])


class ModelForesight(SessionView[ModelSession]):
    """The rows of a small model that drafts: what it says is what it foresees."""

    reads_drafts = True

    def foreseen(self, rows: Tensor, drafted: Tensor, weights: Tensor) -> Tensor:
        """[N, V] (`drafting.Foreseeing`)."""
        return drafting_model(self._session).logprobs_after(rows, drafted)


@dataclass(slots=True)
class _Habit:
    """What is known of one request's drafts: who makes them, what they cost, and how they fared lately."""

    source: Lookup | Certain | Forced | str
    """What follows from its own text, or the name of who drafts for it."""
    cost: StepCost
    appetite: Appetite = field(default_factory=Appetite)
    num_drafted: int = 0
    """In the step that runs."""


class Drafters:
    """Everything that drafts beside one batch."""

    def __init__(
        self,
        model: LanguageModel,
        base: ModelSession,
        lanes: Sequence[Lane],
        drafters: Mapping[str, Drafter],
        max_drafted: int,
    ) -> None:
        """`max_drafted` bounds the tokens that are guessed in a step, those for all requests together."""
        self._base = base
        self._max_drafted = max_drafted
        self._vocab_size = min(model.vocab_size, num_readable(model))
        self._lanes = {lane.name: lane for lane in lanes}
        self._beside: dict[str, Rows[Session]] = {}
        """What drafts and nothing else: models by their names, copies of guides by the guides'."""
        self._room = {name: drafter.max_length for name, drafter in drafters.items()}
        for name, drafter in drafters.items():
            session: Session = drafter.open() if isinstance(drafter, Guide) else ModelForesight(drafter.open())
            self._beside[name] = Rows(session)
        self._habits: dict[int, _Habit] = {}

    @property
    def sides(self) -> tuple[Rows[Session], ...]:
        """The rows of what drafts and nothing else."""
        return tuple(self._beside.values())

    def check(self, request: Request) -> None:
        """Raise OptionError for a request whose drafts cannot be made or read."""
        if request.params.draft == FORCED_DRAFT:
            if not request.params.forced:
                raise _refused("No token is forced, so none is known.")
            return  # whoever takes no token back reads them one by one
        if not drafts(self._base):
            raise _refused("The model takes no token back, so nothing can be drafted for it.")
        for lane in self._running(request):
            if isinstance(lane, SelectingLane):
                raise _refused("Guide {0} selects the token, so none can be drafted.", lane.name)
            if not drafts(lane.session):
                raise _refused("Guide {0} takes no token back, so nothing can be drafted.", lane.name)
            if not self._has_states(lane):
                raise _refused(
                    "Guide {0} reads the model's states, which this model does not say after drafted tokens.", lane.name
                )
        if request.params.draft == CERTAIN_DRAFT and request.matching is None:
            raise _refused("Nothing is certain where an answer has no constraint.")
        if request.params.draft not in _OF_ITSELF and (name := self._drafter(request)) in self._beside:
            self._check_room(request, name)

    def _check_room(self, request: Request, name: str) -> None:
        """Raise OptionError for an answer that may grow longer than what drafts for it holds."""
        room, most = self._room[name], len(self._read_by(name, request)) + request.max_new_tokens
        if room is not None and most > room:
            raise naming(
                OptionError,
                "{0} drafts and holds {1} tokens, and prompt and answer may come to {2}. Ask for at most {3} new "
                f"tokens, or give {{draft}} {NO_DRAFT}.",
                *(name, room, most, max(0, room - most + request.max_new_tokens)),
            )

    def unknown(self, request: Request) -> int:
        """How many tokens of a request have to be fed to what drafts for it and nothing else."""
        name = self._name_beside(request)
        return 0 if name is None else self._beside[name].unknown(self._read_by(name, request))

    def admit(self, new: Sequence[tuple[Request, int]]) -> None:
        """Requests that something drafts for that does nothing else get a row of it."""
        for name, side in self._beside.items():
            mine = [(request, share) for request, share in new if self._name_beside(request) == name]
            side.admit([(request, self._read_by(name, request), share) for request, share in mine])

    def propose(self, requests: Sequence[Request]) -> dict[int, list[int]]:
        """Guesses at the next tokens of requests that ask for them, by request id; none where none pays."""
        wanted = {request.request_id: num for request in requests if (num := self._wanted(request))}
        wanted = _within(wanted, self._max_drafted)
        by_drafter: dict[str, list[Request]] = {}
        proposals: dict[int, list[int]] = {}
        for request in requests:
            if request.request_id not in wanted:
                continue
            source = self._habits[request.request_id].source
            if isinstance(source, Lookup):
                proposals[request.request_id] = source.next(request.read_by(None), wanted[request.request_id])
            elif isinstance(source, Certain | Forced):
                proposals[request.request_id] = source.next(request.token_ids, wanted[request.request_id])
            else:
                by_drafter.setdefault(source, []).append(request)
        for name, some in by_drafter.items():
            proposals.update(_answered(name, self._rows_of(name), some, wanted, self._vocab_size))
        by_key = {request.request_id: request for request in requests}
        proposals = {key: acceptable(by_key[key], draft) for key, draft in proposals.items()}
        proposals = {key: draft for key, draft in proposals.items() if draft}
        for key, draft in proposals.items():
            self._habits[key].num_drafted = len(draft)
        return proposals

    def note(self, tokens: Mapping[int, Sequence[int]]) -> None:
        """What came of the drafts: request id -> the tokens that it got. Who got none is forgotten."""
        for key, habit in self._habits.items():
            if key in tokens:
                habit.appetite.note(habit.num_drafted, len(tokens[key]) - 1)
            habit.num_drafted = 0

    def keep(self, running: set[int]) -> None:
        """Forget the requests that are not among these."""
        self._habits = {key: habit for key, habit in self._habits.items() if key in running}

    def _wanted(self, request: Request) -> int:
        """How many tokens to guess for a request: no more than it may still get besides the one it gets anyway."""
        params = request.params
        most = request.max_new_tokens - len(request.token_ids) - 1
        if params.draft == NO_DRAFT or not request.may_draft or most < 1:
            return 0
        if params.draft == FORCED_DRAFT and not self._takes_back(request):
            return 0
        habit = self._habits.get(request.request_id)
        if habit is None:
            habit = self._new_habit(request)
            if habit is None:
                return 0
            self._habits[request.request_id] = habit
        if params.draft_tokens is not None:
            return min(params.draft_tokens, most)
        return habit.appetite.length(min(most, MOST), habit.cost)

    def _new_habit(self, request: Request) -> _Habit | None:
        """None where the guide that would draft does not run."""
        lanes = list(self._running(request))
        if request.params.draft in _OF_ITSELF:
            return _Habit(_known(request), StepCost(self._base, lanes, None))
        name = self._drafter(request)
        return None if name is None else _Habit(name, StepCost(self._base, lanes, self._rows_of(name)))

    def _takes_back(self, request: Request) -> bool:
        """Whether everything that reads a request's tokens can forget the last ones again."""
        lanes = list(self._running(request))
        return drafts(self._base) and all(
            not isinstance(lane, SelectingLane) and drafts(lane.session) and self._has_states(lane) for lane in lanes
        )

    def _has_states(self, lane: Lane) -> bool:
        """Whether the base says the states that a guide reads, if it reads any, after drafted tokens too."""
        return not lane.guide.needs_context or has_states_after_drafts(self._base)

    def _running(self, request: Request) -> Iterator[Lane]:
        return (lane for name, lane in self._lanes.items() if request.weights[name] != 0)

    def _read_by(self, name: str, request: Request) -> tuple[int, ...]:
        """What a drafter reads: a copy of a guide what the guide reads, a model what the base does."""
        return request.read_by(name if name in self._lanes else None)

    def _name_beside(self, request: Request) -> str | None:
        """The name of what drafts for a request and does nothing else; None where there is no such thing."""
        if request.params.draft in (NO_DRAFT, *_OF_ITSELF):
            return None
        name = self._drafter(request)
        return name if name in self._beside else None

    def _rows_of(self, name: str) -> Rows[Session]:
        """The rows of who drafts by this name."""
        return self._beside[name] if name in self._beside else self._lanes[name]

    def _drafter(self, request: Request) -> str | None:
        """The name of who drafts for a request; None where that is a guide that does not run in it.

        Raises OptionError where nobody could.
        """
        draft = request.params.draft
        models = [name for name in self._beside if name not in self._lanes]
        if draft in models:
            return draft
        able = [name for name, lane in self._lanes.items() if name in self._beside or self._drafts_alone(lane)]
        asked = [name for name in able if draft in (GUIDE_DRAFT, name)]
        running = [name for name in asked if request.weights[name] != 0]
        if len(running) < 2 and asked:
            return running[0] if running else None
        accepted = [NO_DRAFT, *_OF_ITSELF, *([GUIDE_DRAFT] if len(able) == 1 else []), *able, *models]
        one_of = f"one of {', '.join(accepted)}"
        if draft == GUIDE_DRAFT and not self._lanes:
            raise naming(OptionError, "There is no guide that could draft. Add one, or give {draft} {0}.", one_of)
        if draft == GUIDE_DRAFT and not able:
            raise naming(
                OptionError,
                "No guide is a smaller model of its own, so none can draft: an adapter of the base runs in the base's "
                "own passes. Give {draft} {0}, or a copy of the guide that drafts in its stead (--draft-quantize).",
                one_of,
            )
        if draft == GUIDE_DRAFT:
            raise naming(
                OptionError,
                "Several guides could draft ({0}). Give {draft} the name of one of them.",
                ", ".join(running),
            )
        raise about("draft", unknown_name("draft", draft, accepted))

    def _drafts_alone(self, lane: Lane) -> bool:
        """Whether a guide says by itself what it steers to, by passes that are not the base's."""
        if not (isinstance(lane.session, Foreseeing) and drafts(lane.session)):
            return False
        guides_caches = {id(cache) for cache in caches_of([lane.session])}
        return guides_caches.isdisjoint(id(cache) for cache in caches_of([self._base]))


def _refused(why: str, *values: object) -> OptionError:
    """The error of a request for which nothing can be drafted."""
    return naming(OptionError, f"{why} Give {{draft}} {NO_DRAFT}.", *values)


def _known(request: Request) -> Lookup | Certain | Forced:
    """What a request itself knows of its next tokens."""
    if request.params.draft == FORCED_DRAFT:
        return Forced(request.params.forced)
    if request.params.draft == CERTAIN_DRAFT and request.matching is not None:
        return Certain(request.matching)
    return Lookup()


def bound_drafters(
    model: LanguageModel, drafters: Mapping[str, Drafter], guides: Collection[str]
) -> dict[str, Drafter]:
    """What drafts, ready to: copies of guides are bound to the model.

    Raises OptionError for a name that a request could not mean, and for a copy of no guide that steers;
    VocabularyMismatchError for another vocabulary.
    """
    bound: dict[str, Drafter] = {}
    for name, drafter in drafters.items():
        if name in (NO_DRAFT, *_OF_ITSELF, GUIDE_DRAFT):
            raise OptionError(f"What drafts cannot be called {name}, which means something else as a draft.")
        if isinstance(drafter, Guide):
            if name not in guides:
                raise OptionError(f"{name} is a guide, and no guide that steers has its name; a copy has the guide's.")
            bound[name] = drafter.bind(model)
            if not isinstance(bound[name].open(), Foreseeing):
                raise OptionError(
                    f"The copy of guide {name} cannot draft: it says nothing without the model that it steers. Give a "
                    "copy of a guide that is a language model."
                )
        elif name in guides:
            raise OptionError(f"A model that drafts cannot be called {name}, which is a guide's name.")
        else:
            try:
                check_same_vocabulary(model, drafter)
            except VocabularyMismatchError as error:
                raise VocabularyMismatchError(
                    f"{name} cannot draft: a model that drafts has the vocabulary of the model that it drafts for, id "
                    "by id, and this one has another. Give a model with the same tokenizer."
                ) from error
            bound[name] = drafter
    return bound


def _within(wanted: Mapping[int, int], most: int) -> dict[int, int]:
    """No more than `most` guesses in all: each draft is cut to its share; where one each is too many, some get none."""
    each = max(1, most // max(1, len(wanted)))
    return {key: min(num, each) for key, num in list(wanted.items())[:most]}


def _answered(
    name: str, source: Rows[Session], requests: Sequence[Request], wanted: Mapping[int, int], num_known: int
) -> dict[int, list[int]]:
    """What the drafter of this name would answer, one token after another, each drawn with its position's number.

    Ids from `num_known` on are unknown to the base.
    """
    foresight = source.session
    assert isinstance(foresight, Foreseeing), "checked when the request was made"
    proposals: dict[int, list[int]] = {request.request_id: [] for request in requests}
    going = list(requests)
    while going := [request for request in going if _goes_on(request, proposals, wanted)]:
        rows = torch.tensor([source.row(request) for request in going])
        drafted = torch.tensor([len(proposals[request.request_id]) for request in going])
        weights = torch.tensor([request.weights.get(name, 0.0) for request in going])
        table = foresight.foreseen(rows, drafted, weights)
        columns = Columns.of(going, table.device)
        policy = final_policy(
            normalised(table[:, :num_known]),
            temperature=columns.temperature,
            top_k=columns.top_k,
            top_p=columns.top_p,
            min_p=columns.min_p,
        )
        names = [(request.seed, len(request.token_ids) + len(proposals[request.request_id])) for request in going]
        tokens = draw(policy, step_keys(names, policy.device)).tolist()
        for request, token in zip(going, tokens, strict=True):
            proposals[request.request_id].append(token)
        source.draft({request.request_id: proposals[request.request_id] for request in going})
    return proposals


def _goes_on(request: Request, proposals: Mapping[int, Sequence[int]], wanted: Mapping[int, int]) -> bool:
    draft = proposals[request.request_id]
    return len(draft) < wanted[request.request_id] and not (draft and request.ends(draft[-1]))
