"""From sampled answers to pairs, by a reward, by the sentence that they were sampled under, or by a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.evaluation.judging.judges import Judge
from trimtab.making.choosing import Account, Chooser, Kept, Pair, by_reward, by_sentence, kept_answers
from trimtab.making.files import PairFiles
from trimtab.making.rating import Rewarder, check_differ, rate_into
from trimtab.making.result import PairSet, pair_set
from trimtab.making.sampling import Samples
from trimtab.making.settings import ChoiceSettings
from trimtab.making.verdicts import by_verdict, check_agrees, duels_of, judge_into

Progress = Callable[[int, int], None]
"""Told how many opinions are there, of how many."""


class Way(Protocol):
    """What tells the answers to a prompt apart."""

    def pairs(
        self, kept: Sequence[Kept], samples: Sequence[Samples], settings: ChoiceSettings, account: Account
    ) -> Iterable[Sequence[Pair]]:
        """The pairs of each prompt. What takes time is on file as soon as it is known."""


@dataclass(frozen=True, slots=True)
class ByReward:
    """The answer with the higher reward is chosen."""

    rewarder: Rewarder
    files: PairFiles
    described: Mapping[str, object]
    """What the rewards are, digests included: others are kept in another file."""
    progress: Progress | None = None

    def pairs(
        self, kept: Sequence[Kept], samples: Sequence[Samples], settings: ChoiceSettings, account: Account
    ) -> Iterable[Sequence[Pair]]:
        progress = self.progress
        rewards = rate_into(
            self.files.opinions("rewards", self.described),
            self.rewarder,
            samples,
            on_prompts=None if progress is None else lambda num: progress(num, len(samples)),
        )
        check_differ(samples, rewards)
        chooser = Chooser(settings, account)
        return [chooser.choose(possible) for possible in by_reward(kept, rewards, settings, account)]


@dataclass(frozen=True, slots=True)
class BySentence:
    """The answer that was sampled under the first sentence is chosen."""

    def pairs(
        self, kept: Sequence[Kept], samples: Sequence[Samples], settings: ChoiceSettings, account: Account
    ) -> Iterable[Sequence[Pair]]:
        chooser = Chooser(settings, account)
        return [chooser.choose(possible) for possible in by_sentence(kept)]


@dataclass(frozen=True, slots=True)
class ByJudge:
    """The answer that a judge prefers is chosen, in both orders where it can see them."""

    judge: Judge
    files: PairFiles
    described: Mapping[str, object]
    progress: Progress | None = None

    def pairs(
        self, kept: Sequence[Kept], samples: Sequence[Samples], settings: ChoiceSettings, account: Account
    ) -> Iterable[Sequence[Pair]]:
        duels = duels_of(kept, settings, account)
        path = self.files.opinions("verdicts", self.described)
        verdicts = judge_into(path, self.judge, duels, on_verdict=self.progress)
        pairs = by_verdict(duels, verdicts, self.judge, len(samples), account)
        check_agrees(self.judge, duels, account)
        return pairs


def pairs_from(samples: Sequence[Samples], way: Way, settings: ChoiceSettings, *, seed: int) -> PairSet:
    """The pairs of sampled answers; the same samples, opinions and settings give the same pairs.

    Raises DataError where there is none, ModelError for a reward or a judge that tells no answers apart, and what the
    way raises.
    """
    account = Account()
    kept = kept_answers(samples, settings, account)
    return pair_set(list(way.pairs(kept, samples, settings, account)), settings, account, seed=seed)
