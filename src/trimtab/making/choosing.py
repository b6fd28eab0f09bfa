"""Which two answers to a prompt become a pair, and an account of all that do not. Pure.

A pair's answers are far enough apart in what tells them apart, and near enough in length: a reward that is a sum over
tokens would otherwise be taught mostly that one of them is longer. Of a prompt's possible pairs those come first that
even out, over all prompts so far, how often the chosen answer is the longer one, then those with the larger margin.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, permutations

from trimtab.core import Prompt
from trimtab.errors import DataError, naming
from trimtab.making.likeness import plain, repeated, stock
from trimtab.making.sampling import Samples
from trimtab.making.settings import AWAY, TOWARDS, ChoiceSettings
from trimtab.prompts import as_json

EMPTY, CUT, ALIKE, STOCK, UNSCORED = "empty", "cut", "alike", "stock", "unscored"
"""Why an answer is left out: nothing whole was said; it ran into the limit; nearly another one; it answers many
prompts; without a reward."""
CLOSE, UNLIKE, TIED, TURNED, SILENT, MISREAD = "close", "unlike", "tied", "turned", "silent", "misread"
"""Why two answers are not a pair: too small a margin; too unlike in length; the judge saw a tie, changed its mind when
the order was turned, or gave no verdict; training would read them otherwise."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: `chosen` over `rejected`."""

    prompt: Prompt
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None
    """The rewards of the two, where there are any."""

    @property
    def margin(self) -> float:
        """By how much the chosen answer's reward is higher; 0 without rewards."""
        return 0.0 if self.scores is None else self.scores[0] - self.scores[1]

    @property
    def excess(self) -> int:
        """Characters that the chosen answer is longer by."""
        return len(self.chosen) - len(self.rejected)


@dataclass(frozen=True, slots=True)
class Kept:
    """The answers to a prompt that may be in a pair: under what they were sampled -> (place among them, text)."""

    index: int
    prompt: Prompt
    answers: dict[str, list[tuple[int, str]]]


@dataclass(slots=True)
class Account:
    """How many of what there was, and why the rest is not there."""

    num_prompts: int = 0
    num_unreadable: int = 0
    num_answers: int = 0
    num_cut: int | None = 0
    """Answers that ran into the length limit; None where the file of answers does not say."""
    answers_out: Counter[str] = field(default_factory=Counter)
    pairs_out: Counter[str] = field(default_factory=Counter)
    min_margin: float | None = None
    """The one that was asked of a pair, given or computed."""
    reasons: tuple[str, ...] = ()
    """Why verdicts are missing, each with how many."""


def prompt_key(prompt: Prompt) -> str:
    """What tells one prompt from another."""
    return json.dumps(as_json(prompt), sort_keys=True)


def kept_answers(samples: Sequence[Samples], settings: ChoiceSettings, account: Account) -> list[Kept]:
    """The answers to each prompt that can be read, without those that are empty, nearly equal or answer everything.

    Raises DataError where answers that ran into the limit are to be left out and the file does not say which did.
    """
    by_prompt = {prompt_key(one.prompt): one.texts for one in samples}
    everywhere = stock(by_prompt, settings.max_prompts_per_response)
    kept = []
    for index, one in enumerate(samples):
        account.num_prompts += 1
        account.num_unreadable += bool(one.problem)
        account.num_answers += len(one.texts)
        cut = _cut(one, settings)
        account.num_cut = None if cut is None or account.num_cut is None else account.num_cut + len(cut)
        alike = repeated(list(one.answers.values()), settings.max_similarity)
        answers: dict[str, list[tuple[int, str]]] = {}
        number = count()
        for group, (name, texts) in enumerate(one.answers.items()):
            answers[name] = []
            for place, text in enumerate(texts):
                is_cut = next(number) in (cut or ()) and not settings.cut_answers
                why = _why_not(text, everywhere, is_cut=is_cut, is_alike=(group, place) in alike)
                if why:
                    account.answers_out[why] += 1
                else:
                    answers[name].append((place, text))
        kept.append(Kept(index, one.prompt, answers))
    return kept


def _cut(samples: Samples, settings: ChoiceSettings) -> frozenset[int] | None:
    """Which answers to a prompt ran into the limit, None where nobody knows."""
    if samples.cut is None and samples.texts and not settings.cut_answers:
        raise naming(
            DataError,
            "Answers that ran into the limit are to be left out ({cut_answers}), and the file of answers was written "
            "before trimtab noted which did. Do not leave them out, or give {overwrite} for new answers.",
        )
    return samples.cut if samples.texts else frozenset()


def _why_not(text: str, everywhere: set[str], *, is_cut: bool, is_alike: bool) -> str:
    if not text:
        return EMPTY
    if is_cut:
        return CUT
    if plain(text) in everywhere:
        return STOCK
    return ALIKE if is_alike else ""


def spread(rewards: Iterable[Sequence[float]]) -> float:
    """The standard deviation of rewards around the mean of their prompt, over all prompts; 0 where none has two."""
    squares, freedom = 0.0, 0
    for group in rewards:
        if len(group) > 1:
            mean = sum(group) / len(group)
            squares += sum((value - mean) ** 2 for value in group)
            freedom += len(group) - 1
    return math.sqrt(squares / freedom) if freedom else 0.0


def by_reward(
    kept: Sequence[Kept], rewards: Sequence[Sequence[float | None]], settings: ChoiceSettings, account: Account
) -> Iterator[list[Pair]]:
    """For each prompt all pairs whose rewards differ by the least margin; `rewards` are those of all its answers."""
    scored: list[list[tuple[str, float]]] = []
    for one in kept:
        found = [(text, rewards[one.index][place]) for texts in one.answers.values() for place, text in texts]
        scored.append([(text, value) for text, value in found if value is not None])
        account.answers_out[UNSCORED] += len(found) - len(scored[-1])
    least = settings.min_margin
    if least is None:
        least = spread([value for _, value in group] for group in scored) / 2
    account.min_margin = least
    for one, group in zip(kept, scored, strict=True):
        found_pairs = []
        for (chosen, high), (rejected, low) in permutations(group, 2):
            if high - low >= least and high > low:
                found_pairs.append(Pair(one.prompt, chosen, rejected, (high, low)))
            elif high > low or (high == low and chosen < rejected):
                account.pairs_out[CLOSE] += 1
        yield found_pairs


def by_sentence(kept: Sequence[Kept]) -> Iterator[list[Pair]]:
    """For each prompt every answer under the first sentence against every one under the second."""
    for one in kept:
        yield [
            Pair(one.prompt, chosen, rejected)
            for _, chosen in one.answers.get(TOWARDS, ())
            for _, rejected in one.answers.get(AWAY, ())
        ]


class Chooser:
    """Chooses among the possible pairs of one prompt after another, and remembers which side was longer how often."""

    def __init__(self, settings: ChoiceSettings, account: Account) -> None:
        self._settings = settings
        self._account = account
        self._balance = 0
        """Pairs whose chosen answer is the longer one, less those whose rejected one is."""

    def choose(self, possible: Iterable[Pair]) -> list[Pair]:
        """The pairs of one prompt: at most `max_pairs`, no answer in two of them."""
        left = []
        for pair in possible:
            if length_ratio(pair.chosen, pair.rejected) < self._settings.min_length_ratio:
                self._account.pairs_out[UNLIKE] += 1
            else:
                left.append(pair)
        chosen: list[Pair] = []
        while left and len(chosen) < self._settings.max_pairs:
            best = min(left, key=self._rank)
            chosen.append(best)
            self._balance += (best.excess > 0) - (best.excess < 0)
            used = {best.chosen, best.rejected}
            left = [pair for pair in left if pair.chosen not in used and pair.rejected not in used]
        return chosen

    def _rank(self, pair: Pair) -> tuple[object, ...]:
        """What comes first is smallest. Texts decide last, so that the choice is the same on every machine."""
        unbalances = self._settings.balance_lengths and pair.excess * self._balance > 0
        nearness = length_ratio(pair.chosen, pair.rejected)
        return unbalances, -pair.margin, -nearness, pair.chosen, pair.rejected


def length_ratio(one: str, another: str) -> float:
    """Characters of the shorter text as a share of the longer one's."""
    return min(len(one), len(another)) / max(len(one), len(another), 1)


def candidates(one: Kept, settings: ChoiceSettings, account: Account) -> list[tuple[tuple[int, str], tuple[int, str]]]:
    """Pairs of a prompt's answers for a judge, no answer in two of them: those of nearest length first."""
    answers = [answer for texts in one.answers.values() for answer in texts]
    ordered = sorted(
        ((first, second) for index, first in enumerate(answers) for second in answers[index + 1 :]),
        key=lambda two: (-length_ratio(two[0][1], two[1][1]), two[0][0], two[1][0]),
    )
    chosen: list[tuple[tuple[int, str], tuple[int, str]]] = []
    used: set[int] = set()
    for first, second in ordered:
        if len(chosen) == settings.max_pairs:
            break
        if used & {first[0], second[0]}:
            continue
        if length_ratio(first[1], second[1]) < settings.min_length_ratio:
            account.pairs_out[UNLIKE] += 1
            continue
        chosen.append((first, second))
        used |= {first[0], second[0]}
    return chosen
