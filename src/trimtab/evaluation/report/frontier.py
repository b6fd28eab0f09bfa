"""What a guide buys and what it costs: reward against KL, strength by strength, over the same prompts and seeds.

Every method of steering buys reward with KL, so the honest comparison is the whole curve (Gao et al., arXiv 2210.10760,
section 3). KL is exact: at each step over the whole vocabulary, summed over the answer, averaged over the answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.answers import Answer, finished
from trimtab.core import Prompt
from trimtab.decoding.decoder import Decoder
from trimtab.statistics import NUM_RESAMPLES, Interval, difference_interval, mean_interval
from trimtab.storage.scorers import Scorer


@dataclass(frozen=True, slots=True)
class Point:
    """One strength of a guide, measured over some prompts."""

    weight: float
    answers: tuple[Answer, ...]
    rewards: tuple[float, ...]
    seconds: float
    """Time it took to decode the answers, prompts included."""
    form: str = ""
    """`product` or `shift`; empty for a guide that has no form, and for the base."""

    @property
    def name(self) -> str:
        """What the point is called: its strength, and its form where it has one."""
        return f"{self.form} {self.weight:g}".strip()

    @property
    def num_tokens(self) -> int:
        """Generated tokens, those that end an answer included."""
        return sum(len(answer.token_ids) for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def reward(self) -> Interval:
        """Mean reward, 95 % bootstrap interval over prompts."""
        return mean_interval(self.rewards)

    @property
    def kl(self) -> Interval:
        """Mean KL(guided ‖ base) of an answer in nats, 95 % bootstrap interval over prompts."""
        return mean_interval([_kl(answer) for answer in self.answers])

    def gain(self, reference: Point) -> Interval:
        """Mean reward above that of another point over the same prompts and seeds, 95 % paired bootstrap interval."""
        return difference_interval(self.rewards, reference.rewards)


@dataclass(frozen=True, slots=True)
class Sweep:
    """How the points of one frontier are decoded; the same for all of them."""

    prompts: Sequence[Prompt]
    scorer: Scorer
    max_new_tokens: int
    seed: int
    """Prompt i draws from seed + i, at every strength."""
    temperature: float = 1.0

    def notes(self) -> dict[str, str]:
        """How it is measured, in words for a report."""
        return {
            "Decoding": f"temperature {self.temperature:g}, no filters, at most {self.max_new_tokens} new tokens; "
            f"prompt i draws from seed {self.seed} + i at every strength",
            "Reward": self.scorer.description,
            "KL": "KL(policy ‖ base at temperature 1), exact: summed at each step over the whole vocabulary and over "
            "an answer's steps",
            "Intervals": f"95 %, bootstrap over prompts (BCa, {NUM_RESAMPLES:,} resamples)",
        }

    def measure(
        self,
        decoder: Decoder,
        weights: dict[str, float],
        weight: float,
        on_answer: Callable[[], None] | None = None,
        *,
        form: str = "",
    ) -> Point:
        """Answer every prompt with `weights` in force; the point is called by `weight` and `form`.

        `on_answer` is called after each answer. Traces are taken at every strength, the base included, so that their
        small cost does not pass for the guide's.
        """
        answers = []
        begin = time.perf_counter()
        decoded = decoder.generate(
            self.prompts,
            weights=weights,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            trace=True,
        )
        for answer in finished(decoded):
            answers.append(answer)
            if on_answer is not None:
                on_answer()
        seconds = time.perf_counter() - begin
        rewards = self.scorer(self.prompts, [answer.text for answer in answers])
        return Point(weight, tuple(answers), tuple(rewards), seconds, form)


def _kl(answer: Answer) -> float:
    assert answer.kl is not None, "decoded without a trace"
    return answer.kl
