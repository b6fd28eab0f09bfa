"""What decoding gives: answers, the steps they grew by, and the account of why each token was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trimtab.core import Prompt

ONLY, INSIGNIFICANT = "only", "insignificant"
"""Reasons of a choice (`Choice.reason`) in which the guide's verdicts had no say."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been chosen at some step, with where each part put it (temperature 1, before filters)."""

    token_id: int
    base_logprob: float
    guide_scores: Mapping[str, float]
    """Unweighted score of each guide that ran."""
    mixed_logprob: float
    base_rank: int
    """0 is the most probable."""
    mixed_rank: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that a guide that selects had before it."""

    token_id: int
    logprob: float
    """Under the tilted policy, at temperature 1, over the whole vocabulary."""
    score: float | None
    """The guide's score (an agent's log-odds of acceptance, a reward); None: it was not looked at."""
    accepted: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """How a guide that selects came to a token."""

    guide: str
    trials: tuple[Trial, ...]
    """Every candidate, best first."""
    index: int
    """Which of them was chosen."""
    reason: str
    """`accepted`; `only`: a single candidate, not asked about; `none`: none was accepted, so the rule fell back;
    `weighed`: the rule does not accept or reject; `insignificant`: the first candidate, taken as it is, since its gate
    of significance was closed."""
    significance: float | None = None
    """How much the first candidate matters (`mixing.significance`, R); None without a gate of significance."""
    least_significance: float | None = None
    """The significance from which on the gate is open (τ)."""
    needs_all: bool = False
    """Whether the rule reads the verdict on every candidate before it decides."""

    @property
    def num_needed(self) -> int:
        """How many candidates had to be looked at: up to the one that decided, one after another. A pass may look at
        more of them at once."""
        if self.reason == ONLY:
            return 0
        if self.reason == INSIGNIFICANT:
            return 1
        return self.index + 1 if self.reason == "accepted" and not self.needs_all else len(self.trials)


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """Why a token was chosen: the token itself, its rivals, and how far the guides moved the policy."""

    chosen: Alternative
    alternatives: tuple[Alternative, ...]
    kl: float
    """KL(policy ‖ base) in nats at this step, over the whole vocabulary: from what the token was drawn from (guides,
    penalties, temperature and filters included) to the frozen base at temperature 1. Where the policy is sure of its
    token (temperature 0, a rule that accepts or rejects) it is −log π_base of that token."""
    choice: Choice | None = None
    """Where a guide that selects ran."""
    sampled_logprob: float | None = None
    """Log-probability of the chosen token under the policy that it was drawn from; −inf for a forced token that could
    not have been drawn."""
    base_entropy: float | None = None
    """Entropy in nats of the frozen base's next token at this step, at temperature 1 and before any filter: how unsure
    the base was."""

    @property
    def acting(self) -> frozenset[str]:
        """The guides that acted at this step."""
        selecting = () if self.choice is None or self.choice.reason == INSIGNIFICANT else (self.choice.guide,)
        return frozenset(self.chosen.guide_scores).union(selecting)


@dataclass(frozen=True, slots=True)
class Step:
    """What one decoding step did to one request."""

    request_id: int
    token_id: int | None
    """None when the request ended without a token (an error)."""
    text: str
    """Text that became certain with this token; it never has to be taken back."""
    finish_reason: str | None
    """None while it runs; `eos`, `stop`, `length` or `error` at its end."""
    trace: TokenTrace | None = None
    error: Exception | None = None
    pieces: tuple[bytes, ...] = ()
    """What each token adds to the text that became certain with this step, in UTF-8: one entry for each token, in their
    order. Empty for a token without text (a special one, a stop string's, the end's); over all steps they join to the
    text."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished request.

    >>> from trimtab import ARM, Decoder, TabularModel
    >>> decoder = Decoder(TabularModel.random(9, seed=0), {"expert": ARM(TabularModel.random(9, seed=1))})
    >>> answer = next(decoder.generate("ab", seed=3, max_new_tokens=4, ignore_eos=True, trace=True))
    >>> answer.finish_reason, dict(answer.weights), len(answer.token_ids)
    ('length', {'expert': 1.0}, 4)
    >>> answer.kl > 0  # nats between what it was drawn from and the frozen base
    True
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Generated ids, an end-of-sequence id included."""
    text: str
    """What the tokens add to the decoded prompt, special tokens left out; up to a stop string, where one was found."""
    finish_reason: str
    """`eos`, `stop`, `length` or `error`."""
    weights: Mapping[str, float]
    """The weight of every guide, those at their own strength included."""
    seed: int
    trace: tuple[TokenTrace, ...] | None = None
    temperature: float = 1.0
    """It was decoded at this, the guide's own where the request did not say."""
    error: Exception | None = None
    """Why it ended, where `finish_reason` is `error`; what was generated until then is there."""

    @property
    def kl(self) -> float | None:
        """KL(policy ‖ base) of the response in nats: the sum over its steps, each to the frozen base at temperature 1,
        whatever the temperature and filters of the request; None without a trace."""
        return None if self.trace is None else sum(step.kl for step in self.trace)

    @property
    def acted(self) -> Mapping[str, float] | None:
        """Guide -> the share of the response's tokens at which it acted (`SamplingParams.gates`), of guides that have a
        weight; None without a trace or a token.

        Behind a gate of significance it is the share of the tokens at which the gate was asked: one with a single
        candidate is none of them. So `random:R` at this rate lets the guide act as often where it has a choice.
        """
        if not self.trace:
            return None
        return {name: _share_acted(self.trace, name) for name, weight in self.weights.items() if weight != 0}

    @property
    def num_needed(self) -> Mapping[str, int] | None:
        """Guide -> how many candidates it had to look at (`Choice.num_needed`) over the response, of guides that
        selected at any token; None without a trace."""
        if self.trace is None:
            return None
        choices = [step.choice for step in self.trace if step.choice is not None]
        return {
            name: sum(choice.num_needed for choice in choices if choice.guide == name)
            for name in dict.fromkeys(choice.guide for choice in choices)
        }

    @property
    def sampled_logprob(self) -> float | None:
        """Log-probability of the response under the policy that it was drawn from, in nats; None without a trace."""
        steps = [step.sampled_logprob for step in self.trace or ()]
        return None if self.trace is None or None in steps else sum(step for step in steps if step is not None)

    @property
    def base_logprob(self) -> float | None:
        """log π_base(y | x) at temperature 1 in nats; None without a trace."""
        return None if self.trace is None else sum(step.chosen.base_logprob for step in self.trace)


def _share_acted(steps: Sequence[TokenTrace], name: str) -> float:
    """See `Answer.acted`."""
    reasons = [step.choice.reason for step in steps if step.choice is not None and step.choice.guide == name]
    if INSIGNIFICANT in reasons:
        asked = [reason for reason in reasons if reason != ONLY]
        return (len(asked) - asked.count(INSIGNIFICANT)) / len(asked)
    return sum(name in step.acting for step in steps) / len(steps)


def finished(answers: Iterable[Answer]) -> Iterator[Answer]:
    """The same answers, for who can use whole ones only: raises the error of the first that failed in its place."""
    for answer in answers:
        if answer.error is not None:
            raise answer.error
        yield answer
