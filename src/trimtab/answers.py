"""What decoding gives: answers, the steps they grew by, and the account of why each token was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from trimtab.core import Prompt


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
    `weighed`: the rule does not accept or reject."""


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
        return frozenset(self.chosen.guide_scores).union(() if self.choice is None else (self.choice.guide,))


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
        weight; None without a trace or a token."""
        if not self.trace:
            return None
        return {
            name: sum(name in step.acting for step in self.trace) / len(self.trace)
            for name, weight in self.weights.items()
            if weight != 0
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


def finished(answers: Iterable[Answer]) -> Iterator[Answer]:
    """The same answers, for who can use whole ones only: raises the error of the first that failed in its place."""
    for answer in answers:
        if answer.error is not None:
            raise answer.error
        yield answer
