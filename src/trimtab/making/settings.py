"""The settings of `trimtab pairs`: how answers are sampled, and which two of them become a pair."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.errors import OptionError, naming
from trimtab.fields import check, described

TOWARDS, AWAY = "towards", "away"
BASE = "answers"
"""What answers were sampled under: one of two sentences, or neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How the answers to a prompt are sampled, beside what `SamplingParams` says."""

    num_samples: int = described(6, "answers to each prompt; with {towards}, half of them under each sentence", low=2)
    whole_sentences: bool = described(
        True,
        "cut an answer that ran into the limit back to its last whole sentence",
        off="leave answers that ran into the limit as they are (they are cut back to the last whole sentence)",
    )

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        check(self)

    def num_under(self, name: str) -> int:
        """How many answers a prompt gets under a sentence, or under none. Raises OptionError for half of an odd one."""
        if name == BASE:
            return self.num_samples
        if self.num_samples % 2:
            raise naming(
                OptionError,
                "{num_samples} is {0}, and half of them are sampled under each sentence; give an even number.",
                self.num_samples,
            )
        return self.num_samples // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceSettings:
    """Which answers are left out, and which two of the others become a pair."""

    max_pairs: int = described(3, "pairs from one prompt at most; no answer is in two of them", low=1)
    min_margin: float | None = described(
        None,
        "with {reward}: the least difference in reward",
        kind="number",
        above=0,
        unset="half the standard deviation of rewards within a prompt",
    )
    min_length_ratio: float = described(
        0.6, "characters of a pair's shorter answer, as a share of the longer one's", low=0, high=1, note="0: any"
    )
    balance_lengths: bool = described(
        True,
        "of a prompt's possible pairs take first those that even out how often the chosen answer is the longer one",
        off="take a prompt's pairs by their margin alone (those go first that even out how often the chosen answer is "
        "the longer one)",
    )
    cut_answers: bool = described(
        True,
        "use answers that ran into the limit, cut back to their last whole sentence",
        off="leave out answers that ran into the limit, whose length and end are the limit's (they are used)",
    )
    max_similarity: float = described(
        0.8,
        "leave out an answer that shares more of its runs of four letters with another answer to its prompt",
        low=0,
        high=1,
        note="1: only equal ones",
    )
    max_prompts_per_response: int = described(
        10, "leave out a text that answers more different prompts than this", low=0, note="0: none"
    )
    eval_share: float = described(
        0.1, "share of the prompts whose pairs go into a file of their own, held out", low=0, below=1, note="0: none"
    )

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        check(self)
