"""Every checker rejects what breaks its law: one thing broken on purpose at a time, as neighbours' code broke it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from trimtab.core import Candidates, ModelSession, Selection, TokenIds
from trimtab.errors import OptionError
from trimtab.guides.arm import ARM, ARMSession
from trimtab.mixing.rules import NEVER, FirstAccepted, Tilt
from trimtab.models.tabular import LetterTokenizer, TabularModel, TabularSession
from trimtab.testing import LawViolation, check_guide, check_model, check_rule, check_tokenizer, laws

V = 6
SOUND = TabularModel.random(V, seed=0)


def picked(table: Tensor, rows: Tensor | None) -> Tensor:
    return table if rows is None else table[rows]


class Unnormalised(TabularSession):
    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        return super().logprobs(rows) + 0.01


class Wide(TabularSession):
    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        return super().logprobs(rows).double()


class Narrow(TabularSession):
    """States of fewer numbers than the model says."""

    def context(self, rows: Tensor | None = None) -> Tensor:
        return super().context(rows)[:, :-1]


class NotANumber(TabularSession):
    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        return super().logprobs(rows).masked_fill(torch.arange(V) == 3, torch.nan)


class PeekStays(TabularSession):
    """A cache mutated in place by a candidate's forward."""

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        states = super().peek(token_ids, rows)
        self.advance(torch.arange(self.num_rows) if rows is None else rows, token_ids[:, -1])
        return states


class LeftPadded(TabularSession):
    """Shorter rows are padded, and the padding is attended."""

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        width = max(len(row) for row in self._rows)
        found = [self._model.next_logprobs((0,) * (width - len(row)) + row) for row in self._rows]
        return picked(torch.stack(found), rows)


class CutsByTheLongestRow(TabularSession):
    """A window that is longer than any short row, and is cut out of the batch's columns."""

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        first = max(0, max(len(row) for row in self._rows) - 32)
        found = [self._model.next_logprobs(row[min(first, len(row) - 1) :]) for row in self._rows]
        return picked(torch.stack(found), rows)


class ForgetsWhatItDecodes(TabularSession):
    """The mask covers the prompt only."""

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        super().admit(prompts)
        self._seen = [*getattr(self, "_seen", []), *(len(prompt) for prompt in prompts)]

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self._seen = [self._seen[row] for row in rows.tolist()]

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        found = [self._model.next_logprobs(row[:seen]) for row, seen in zip(self._rows, self._seen, strict=True)]
        return picked(torch.stack(found), rows)


class KeepsInOrder(TabularSession):
    """Rows are dropped but never reordered or repeated."""

    def keep(self, rows: Tensor) -> None:
        super().keep(rows.unique())


class ForksShare(TabularSession):
    """The two halves of a fork write into one row."""

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self._shared = rows.tolist()

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        super().advance(rows, token_ids)
        shared = getattr(self, "_shared", [])
        self._rows = [self._rows[shared.index(shared[i])] if i < len(shared) else r for i, r in enumerate(self._rows)]


class HostsRows(TabularSession):
    """A shared forward pass that reads its host's first row."""

    host: TabularSession | None = None

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        found = super().logprobs()
        return picked(found if self.host is None else torch.cat([self.host.logprobs()[:1], found[1:]]), rows)


class TouchesItsHost(TabularSession):
    """A shared forward pass that reads its own rows right and writes into its host's first one."""

    host: TabularSession | None = None

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        super().advance(rows, token_ids)
        if self.host is not None:
            first = self.host._rows[0]
            self.host._rows[0] = (*first[:-1], (first[-1] + 1) % V)


class PeeksBefore(TabularSession):
    """The state before the candidate."""

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.context(rows)[:, None].expand(-1, token_ids.shape[1], -1)


class LoneCandidate(TabularSession):
    """The first chunk of a search, one candidate, lands a column too far."""

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        return super().peek((token_ids + 1) % V if token_ids.shape[1] == 1 else token_ids, rows)


class PeekNotReordered(TabularSession):
    """Keeps the states it peeked at, and does not reorder them when rows are."""

    def __init__(self, model: TabularModel) -> None:
        super().__init__(model)
        self._peeked: dict[tuple[int, int], Tensor] = {}
        self._accepted: dict[int, Tensor] = {}

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        states = super().peek(token_ids, rows)
        numbers = range(self.num_rows) if rows is None else rows.tolist()
        for row, ids, found in zip(numbers, token_ids.tolist(), states, strict=True):
            self._peeked.update({(row, token): state for token, state in zip(ids, found, strict=True)})
        return states

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        super().advance(rows, token_ids)
        for row, token in zip(rows.tolist(), token_ids.tolist(), strict=True):
            self._accepted.pop(row, None)
            if (row, token) in self._peeked:
                self._accepted[row] = self._peeked[row, token]
            self._peeked = {key: state for key, state in self._peeked.items() if key[0] != row}

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self._accepted = {new: self._accepted[old] for new, old in enumerate(rows.tolist()) if old in self._accepted}

    def context(self, rows: Tensor | None = None) -> Tensor:
        found = [self._accepted.get(row, state) for row, state in enumerate(super().context())]
        return picked(torch.stack(found), rows)


class WithoutRows(TabularSession):
    """Cannot be asked about some rows."""

    def logprobs(self) -> Tensor:  # type: ignore[override]
        return super().logprobs()


class TheFirstLogprobs(TabularSession):
    """As many rows as are asked about, but not which."""

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        return super().logprobs(None if rows is None else torch.arange(len(rows)))


class AllContexts(TabularSession):
    def context(self, rows: Tensor | None = None) -> Tensor:
        return super().context()


class PeeksFromTheFirst(TabularSession):
    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        return super().peek(token_ids, None if rows is None else torch.arange(len(rows)))


class LogprobsInOrder(TabularSession):
    """The rows that are asked about, in ascending order."""

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        return super().logprobs(None if rows is None else rows.sort().values)


class RepeatsOnce(TabularSession):
    """A set of rows: one that is named twice is read once."""

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        return super().logprobs(
            None if rows is None else torch.tensor(list(dict.fromkeys(rows.tolist())), dtype=torch.int64)
        )


class NoneIsAll(TabularSession):
    """An empty list of rows is taken for none given."""

    def context(self, rows: Tensor | None = None) -> Tensor:
        return super().context(rows if rows is not None and len(rows) else None)


class PeekedByPlace(PeekNotReordered):
    """Keeps the states it peeked at under their place in the call: the row's only where all are asked about."""

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        states = TabularSession.peek(self, token_ids, rows)
        for place, (ids, found) in enumerate(zip(token_ids.tolist(), states, strict=True)):
            self._peeked.update({(place, token): state for token, state in zip(ids, found, strict=True)})
        return states

    def keep(self, rows: Tensor) -> None:
        TabularSession.keep(self, rows)
        self._peeked, self._accepted = {}, {}

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        super().admit(prompts)
        self._peeked = {}


class ReadsDraftsAtTheEnd(TabularSession):
    """Numbers of drafted tokens are those after the last of them."""

    def logprobs_after(self, rows: Tensor, drafted: Tensor) -> Tensor:
        return self.logprobs(rows)


class KeepsEveryDraft(TabularSession):
    def settle(self, counts: Tensor) -> None:
        self._drafted = {}


class TakesEveryDraftBack(TabularSession):
    def settle(self, counts: Tensor) -> None:
        super().settle(torch.zeros_like(counts))


class BrokenModel(TabularModel):
    """The sound model with a broken session."""

    def __init__(self, session: type[TabularSession]) -> None:
        super().__init__(SOUND.next_logprobs, V)
        self._session = session

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        session = self._session(self)
        if isinstance(session, HostsRows | TouchesItsHost) and isinstance(beside, TabularSession):
            session.host = beside
        return session


MODELS: dict[type[TabularSession], str] = {
    ReadsDraftsAtTheEnd: laws.DRAFT,
    KeepsEveryDraft: laws.DRAFT,
    TakesEveryDraftBack: laws.DRAFT,
    Unnormalised: laws.WELL_FORMED,
    Wide: laws.WELL_FORMED,
    Narrow: laws.WELL_FORMED,
    NotANumber: laws.WELL_FORMED,
    PeekStays: laws.PURE,
    LeftPadded: laws.ALONE,
    CutsByTheLongestRow: laws.ALONE,
    ForgetsWhatItDecodes: laws.ADMIT,
    KeepsInOrder: laws.KEEP,
    ForksShare: laws.KEEP,
    HostsRows: laws.BESIDE,
    TouchesItsHost: laws.BESIDE,
    PeeksBefore: laws.PEEK,
    LoneCandidate: laws.SUBSET,
    PeekNotReordered: laws.REMEMBERED,
    WithoutRows: laws.ROWS,
    TheFirstLogprobs: laws.ROWS,
    LogprobsInOrder: laws.ROWS,
    AllContexts: laws.ROWS,
    PeeksFromTheFirst: laws.ROWS,
    RepeatsOnce: laws.ROWS,
    NoneIsAll: laws.ROWS,
    PeekedByPlace: laws.ROWS,
}


@pytest.mark.parametrize("session", MODELS, ids=lambda session: session.__name__)
def test_a_broken_model_is_rejected(session: type[TabularSession]) -> None:
    with pytest.raises(LawViolation) as caught:
        check_model(BrokenModel(session), num_steps=12)
    assert caught.value.law == MODELS[session]


def test_the_sound_model_passes() -> None:
    check_model(BrokenModel(TabularSession), num_steps=12)


class Shapeless(ARMSession):
    def score(self, candidates: Candidates) -> Tensor:
        return super().score(candidates)[:, :1]


class InfiniteScore(ARMSession):
    def score(self, candidates: Candidates) -> Tensor:
        return super().score(candidates).masked_fill(candidates.token_ids == 2, torch.inf)


class ScoreStays(ARMSession):
    """Scoring feeds the best candidate."""

    def score(self, candidates: Candidates) -> Tensor:
        scores = super().score(candidates)
        self.advance(torch.arange(self.num_rows), scores.argmax(1))
        return scores


class WritesIntoCandidates(ARMSession):
    def score(self, candidates: Candidates) -> Tensor:
        candidates.logprobs.add_(super().score(candidates))
        return candidates.logprobs


class BatchNormalised(ARMSession):
    def score(self, candidates: Candidates) -> Tensor:
        scores = super().score(candidates)
        return scores - scores.mean(0)


class DropsAToken(ARMSession):
    """The first generated token is never fed: it was sampled before the guide was opened."""

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        super().admit(prompts)
        self._fed = [*getattr(self, "_fed", []), *(False for _ in prompts)]

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self._fed = [self._fed[row] for row in rows.tolist()]

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        fed = torch.tensor([self._fed[row] for row in rows.tolist()], dtype=torch.bool)
        super().advance(rows[fed], token_ids[fed])
        self._fed = [fed or row in rows.tolist() for row, fed in enumerate(self._fed)]


class NotReordered(ARMSession):
    """The guide's cache is cut to size but not reordered when rows are."""

    def keep(self, rows: Tensor) -> None:
        super().keep(torch.arange(len(rows)) % max(1, self.num_rows))


class SharedRows(ARMSession):
    """Opened beside the base, it takes the base's numbers for its own."""

    shares = False

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.logprobs.clone() if self.shares else super().score(candidates)


class NormalisedOverCandidates(ARMSession):
    def score(self, candidates: Candidates) -> Tensor:
        return super().score(candidates).log_softmax(1)


class RemembersByLength(ARMSession):
    """Takes rows for unchanged while their lengths are."""

    def __init__(self, session: ModelSession) -> None:
        super().__init__(session)
        self._known: dict[tuple[int, ...], Tensor] = {}

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        super().advance(rows, token_ids)
        self._known = {}

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        super().admit(prompts)
        self._known = {}

    def score(self, candidates: Candidates) -> Tensor:
        assert isinstance(self._session, TabularSession)
        key = (candidates.token_ids.shape[1], *(len(row) for row in self._session._rows))
        if key not in self._known:
            self._known[key] = self._session.logprobs()
        return candidates.gather(self._known[key])


class LosesWhatWaits(ARMSession):
    """Tokens wait until a score is asked for; those that wait when a row joins are lost."""

    def __init__(self, session: ModelSession) -> None:
        super().__init__(session)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        self._waiting.append((rows, token_ids))

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        self._waiting = []
        super().admit(prompts)

    def keep(self, rows: Tensor) -> None:
        self._feed()
        super().keep(rows)

    def score(self, candidates: Candidates) -> Tensor:
        self._feed()
        return super().score(candidates)

    def _feed(self) -> None:
        for rows, token_ids in self._waiting:
            super().advance(rows, token_ids)
        self._waiting = []


class ScoresDraftsAtTheEnd(ARMSession):
    """The guide reads all drafted tokens, wherever the candidates stand."""

    def score(self, candidates: Candidates) -> Tensor:
        rows = candidates.rows
        if rows is None:
            return super().score(candidates)
        return self._session.logprobs(rows).gather(1, candidates.token_ids)


@dataclass(frozen=True)
class BrokenGuide(ARM):
    """A sound guide with a broken session."""

    session: type[ARMSession] = ARMSession

    def open(self, beside: ModelSession | None = None) -> ARMSession:
        session = self.session(self.model.open(beside))
        if isinstance(session, SharedRows):
            session.shares = beside is not None
        return session


GUIDES: dict[type[ARMSession], str] = {
    Shapeless: laws.WELL_FORMED,
    InfiniteScore: laws.WELL_FORMED,
    ScoreStays: laws.PURE,
    WritesIntoCandidates: laws.PURE,
    BatchNormalised: laws.ALONE,
    DropsAToken: laws.ADMIT,
    NotReordered: laws.KEEP,
    SharedRows: laws.BESIDE,
    NormalisedOverCandidates: laws.SUBSET,
    RemembersByLength: laws.KEEP,
    LosesWhatWaits: laws.REMEMBERED,
    ScoresDraftsAtTheEnd: laws.DRAFT,
}


@pytest.mark.parametrize("session", GUIDES, ids=lambda session: session.__name__)
def test_a_broken_guide_is_rejected(session: type[ARMSession]) -> None:
    with pytest.raises(LawViolation) as caught:
        check_guide(BrokenGuide(TabularModel.random(V, seed=1), session=session), SOUND, num_steps=12)
    assert caught.value.law == GUIDES[session]


def test_the_sound_guide_passes() -> None:
    check_guide(BrokenGuide(TabularModel.random(V, seed=1)), SOUND, num_steps=12)


class Selecting(ARMSession):
    """A sound session of a guide that selects: it is asked about some rows, whichever of the base they continue."""

    host: ModelSession | None = None

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.gather(self._session.logprobs(candidates.rows)) - candidates.logprobs


class ScoresTheFirstRows(Selecting):
    def score(self, candidates: Candidates) -> Tensor:
        rows = None if candidates.rows is None else torch.arange(len(candidates.rows))
        return super().score(replace(candidates, rows=rows))


class TakesItsRowsForTheBases(Selecting):
    """Beside the base it reads the base's log-probabilities by itself, by the numbers of its own rows."""

    def score(self, candidates: Candidates) -> Tensor:
        if self.host is not None and candidates.base_rows is not None:
            found = candidates.gather(self.host.logprobs(candidates.rows))
            candidates = replace(candidates, logprobs=found)
        return super().score(candidates)


class FeedsTheBase(Selecting):
    """Looks at candidates in the base's rows too, and leaves the best of them there."""

    def score(self, candidates: Candidates) -> Tensor:
        scores = super().score(candidates)
        if self.host is not None and candidates.base_rows is not None:
            self.host.advance(candidates.base_rows, candidates.token_ids.gather(1, scores.argmax(1)[:, None])[:, 0])
        return scores


@dataclass(frozen=True)
class BrokenSelector(ARM):
    """A sound guide that selects, with a broken session."""

    session: type[Selecting] = Selecting
    selection = Selection(FirstAccepted(), temperature=1.0)  # type: ignore[assignment]

    def open(self, beside: ModelSession | None = None) -> Selecting:
        session = self.session(self.model.open(beside))
        session.host = beside
        return session


@pytest.mark.parametrize("session", [ScoresTheFirstRows, TakesItsRowsForTheBases, FeedsTheBase])
def test_a_broken_guide_that_selects_is_rejected(session: type[Selecting]) -> None:
    with pytest.raises(LawViolation) as caught:
        check_guide(BrokenSelector(TabularModel.random(V, seed=1), session=session), SOUND, num_steps=12)
    assert caught.value.law == laws.ROWS


def test_the_sound_guide_that_selects_passes() -> None:
    check_guide(BrokenSelector(TabularModel.random(V, seed=1)), SOUND, num_steps=12)


def test_candidates_of_some_rows_say_whose_they_are() -> None:
    table = torch.zeros(3, V)
    ids = torch.arange(V).expand(3, -1)
    some = Candidates(ids, table, rows=torch.tensor([4, 5, 6]), base_rows=torch.tensor([9, 8, 7]))
    found = some.select(torch.tensor([2, 0]))
    assert found.rows is not None
    assert found.base_rows is not None
    assert (found.rows.tolist(), found.base_rows.tolist()) == ([6, 4], [7, 9])
    assert Candidates(ids, table).select(torch.tensor([1])).rows is None


class Logits(Tilt):
    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        return super().policy(candidates, scores) + scores.mean()


class HalfPrecision(Tilt):
    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        return super().policy(candidates, scores).half()


class InPlace(Tilt):
    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        return super().policy(candidates, scores.add_(1.0))


class RenormalisedWeights(Tilt):
    """Divides by 1 + the sum of the weights, so that the temperature changes."""

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        return (super().policy(candidates, scores) / 2).log_softmax(1)


class BareAddition(Tilt):
    """−inf + inf and −inf + NaN are NaN."""

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        return (candidates.logprobs + scores).log_softmax(1)


class Softened(Tilt):
    """A large finite number for −inf."""

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        return (
            (candidates.logprobs + scores.clamp(min=-30))
            .masked_fill(candidates.logprobs == NEVER, NEVER)
            .log_softmax(1)
        )


class Capped(Tilt):
    """Scores are clipped, so their level matters."""

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        return super().policy(candidates, scores.clamp(max=8.0))


class ScaledByTheBatch(Tilt):
    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        finite = scores[scores.isfinite()]
        spread = (finite.max() - finite.min()).clamp(min=1.0) if len(scores) > 1 else 1.0
        return super().policy(candidates, (scores - scores.amax(1, keepdim=True)) / spread)


class LastAccepted(FirstAccepted):
    """Says that the first acceptance decides, and takes the last."""

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        flipped = Candidates(candidates.token_ids, candidates.logprobs.flip(1))
        return super().policy(flipped, scores.flip(1)).flip(1)


RULES: dict[type[Tilt] | type[FirstAccepted], str] = {
    Logits: laws.WELL_FORMED,
    HalfPrecision: laws.WELL_FORMED,
    InPlace: laws.PURE,
    RenormalisedWeights: laws.WEIGHT_ZERO,
    BareAddition: laws.FORBIDDEN,
    Softened: laws.FORBIDDEN,
    Capped: laws.CONSTANT,
    ScaledByTheBatch: laws.ALONE,
    LastAccepted: laws.LAZY,
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_broken_rule_is_rejected(rule: type[Tilt] | type[FirstAccepted]) -> None:
    with pytest.raises(LawViolation) as caught:
        check_rule(rule())
    assert caught.value.law == RULES[rule]


def test_every_law_is_shown_to_reject_something() -> None:
    named = {value for name, value in vars(laws).items() if name.isupper() and isinstance(value, str)}
    assert named - {laws.TEXT} == {*MODELS.values(), *GUIDES.values(), *RULES.values()}  # the text: test_text_laws


def raising(name: str) -> type[TabularSession]:
    """A session in which one verb or reading fails as a user's own code may: after its first uses."""

    def verb(self: TabularSession, *args: object) -> object:
        self.__dict__["_calls"] = self.__dict__.get("_calls", 0) + 1
        if name == "keep" or self.__dict__["_calls"] > 1:
            raise KeyError("a row")
        return getattr(TabularSession, name)(self, *args)

    return type(f"Raising_{name}", (TabularSession,), {name: verb})


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("admit", laws.KEEP),
        ("advance", laws.ALONE),
        ("keep", laws.KEEP),
        ("logprobs", laws.PURE),
        ("peek", laws.PURE),
        ("context", laws.PURE),
    ],
)
def test_a_session_that_raises_breaks_the_law_that_was_checked(name: str, law: str) -> None:
    with pytest.raises(LawViolation) as caught:
        check_model(BrokenModel(raising(name)))
    assert caught.value.law == law
    assert "KeyError was raised: 'a row'" in caught.value.evidence
    assert isinstance(caught.value.__cause__, KeyError)


class RaisingScore(ARMSession):
    def score(self, candidates: Candidates) -> Tensor:
        raise ValueError("no scores")


def test_a_guide_that_raises_breaks_the_law_that_was_checked() -> None:
    with pytest.raises(LawViolation, match="well formed: ValueError was raised: no scores"):
        check_guide(BrokenGuide(TabularModel.random(V, seed=1), session=RaisingScore), SOUND)


def test_a_mistake_in_the_checkers_arguments_is_not_the_models() -> None:
    with pytest.raises(OptionError):
        check_model(SOUND, [[1]])


class RaisingRule(Tilt):
    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        raise ZeroDivisionError("no policy")


def test_a_rule_that_raises_breaks_the_law_that_was_checked() -> None:
    with pytest.raises(LawViolation, match="well formed: ZeroDivisionError was raised: no policy"):
        check_rule(RaisingRule())


class RaisingTokenizer(LetterTokenizer):
    def decode(self, token_ids: TokenIds) -> str:
        raise UnicodeError("no text")


def test_a_tokenizer_that_raises_breaks_the_law_of_texts() -> None:
    with pytest.raises(LawViolation, match="UnicodeError was raised: no text") as caught:
        check_tokenizer(RaisingTokenizer(6))
    assert caught.value.law == laws.TEXT
