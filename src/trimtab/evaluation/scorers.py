"""Scorers: from prompts and texts to one reward each.

`sentiment` is VADER (Hutto and Gilbert, ICWSM 2014): a lexicon with rules for negation, emphasis and punctuation. It
knows words, not meaning: it can be pleased by empty praise, and it reads English only.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.core import Prompt
from trimtab.errors import MissingExtraError, ModelError, OptionError, unknown_name

ScoreFunction = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A score function with what a report says about it."""

    name: str
    description: str
    function: ScoreFunction

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """One finite reward for each text, higher is better. Raises ModelError where the function gives others."""
        rewards = [float(reward) for reward in self.function(prompts, texts)]
        if len(rewards) != len(texts):
            raise ModelError(
                f"Scorer {self.name} gave {len(rewards)} rewards for {len(texts)} texts; it must give one each."
            )
        for index, reward in enumerate(rewards):
            if not math.isfinite(reward):
                raise ModelError(f"Scorer {self.name} gave {reward} for text {index}; rewards are finite numbers.")
        return rewards


def load_scorer(name: str) -> Scorer:
    """A scorer by name, or `module:function` for one of your own.

    The function takes the prompts and the texts and returns one number for each; its module is imported, so it runs
    whatever it holds. Raises OptionError, or MissingExtraError where a package is not installed.
    """
    if ":" in name:
        return _own_scorer(name)
    if name not in SCORERS:
        raise unknown_name("scorer", name, [*SCORERS, "module:function"])
    return SCORERS[name]()


def _sentiment() -> Scorer:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise MissingExtraError("vaderSentiment", "demo", "The sentiment scorer") from error
    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [analyzer.polarity_scores(text)["compound"] for text in texts]

    return Scorer("sentiment", "VADER's compound sentiment of the answer, from −1 to 1", score)


def _own_scorer(name: str) -> Scorer:
    module_name, _, function_name = name.partition(":")
    way_out = "Give module:function, both importable from here (see PYTHONPATH)."
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise OptionError(f"Scorer {name!r}: {module_name!r} cannot be imported ({error}). {way_out}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise OptionError(f"Scorer {name!r}: {module_name} has no function {function_name!r}. {way_out}")
    described = (getattr(function, "__doc__", None) or name).strip().splitlines()[0]
    return Scorer(name, described, function)


SCORERS: dict[str, Callable[[], Scorer]] = {"sentiment": _sentiment}
"""Name -> what builds it."""
