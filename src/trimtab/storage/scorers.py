"""Scorers: from prompts and texts to one reward each.

`sentiment` is VADER (Hutto and Gilbert, ICWSM 2014): a lexicon with rules for negation, emphasis and punctuation. It
knows words, not meaning: it can be pleased by empty praise, and it reads English only.

`offence` is alt-profanity-check: the probability that a text is offensive, from a linear classifier on a bag of words.
HIGHER IS WORSE, so it is used with a negative multiplier. It knows words, not meaning either: it finds abuse in rude
words and misses it in polite ones, and a question about a rude word is rude to it.

`short-answer`, `plain-words` and `short-sentences` are exact functions of a text (`storage/exact_scorers.py`): minus
its number of characters, minus the share of its words that are long, and minus the average number of words in a
sentence.

A directory or a hub id is a reward model (`models/rewards/whole.py`), and `module:function` or `FILE.py:function` is
one of your own.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core import Prompt
from trimtab.errors import (
    CheckpointError,
    CompatibilityError,
    MissingExtraError,
    OptionError,
    ScoreError,
    TrimtabError,
    unknown_name,
)
from trimtab.storage.exact_scorers import EXACT
from trimtab.storage.scorer_functions import ScoreFunction, is_function_name, load_function, module_file

if TYPE_CHECKING:
    import torch

    from trimtab.models.rewards.whole import RewardModel
    from trimtab.storage.cards import GuideCard

log = logging.getLogger(__name__)

__all__ = [
    "LARGEST",
    "SCORERS",
    "ScoreFunction",
    "Scorer",
    "is_function_name",
    "load_reward_model",
    "load_scorer",
    "module_file",
]

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")


LARGEST = 1e30
"""The largest magnitude of a reward: sums, squares and cubes of many such are finite, and a figure can be drawn."""

_NUMBERS = f"rewards are finite numbers from {-LARGEST:g} to {LARGEST:g}"


@dataclass(frozen=True, slots=True)
class Scorer:
    """A score function with what a report says about it."""

    name: str
    description: str
    function: ScoreFunction

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """One reward for each text, finite and of a magnitude of at most `LARGEST`.

        Raises ScoreError, which names the first text at fault and carries the other rewards, where the function fails,
        gives something that is not a number (True and False among it) or too large a number, or not one for each text.
        Errors of trimtab's own, those of a reward model, pass as they are.
        """
        values = self._numbers(prompts, texts)
        rewards = [value if abs(value) <= LARGEST else None for value in values]
        if None in rewards:
            index = rewards.index(None)
            raise ScoreError(
                self.name,
                f"gave {values[index]} for {{place}}; {_NUMBERS}.",
                place=f"text {index}",
                index=index,
                rewards=rewards,
            )
        return values

    def raw(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """One reward for each text, for callers that leave out and count texts without a finite one.

        NaN and infinities come as they are; what is larger than `LARGEST` is infinite. Raises ScoreError as calling the
        scorer does.
        """
        values = self._numbers(prompts, texts)
        return [math.copysign(math.inf, value) if abs(value) > LARGEST else value for value in values]

    def contents(self) -> dict[str, str]:
        """The digests of what scores, by file: with others it is another scorer. Empty where nothing is known of it."""
        from trimtab.storage.digests import callable_contents, scorer_contents

        return scorer_contents(self.name) or callable_contents(self.function)

    def _numbers(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """What the function gives, as numbers; where it does not, a second look at each text alone finds the fault."""
        try:
            return self._called(prompts, texts)
        except ScoreError as error:
            if error.index is not None or len(texts) < 2:
                raise
            rewards: list[float | None] = [None] * len(texts)
            first: ScoreError | None = None
            for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
                try:
                    value = self._called([prompt], [text])[0]
                    rewards[index] = value if abs(value) <= LARGEST else None
                except ScoreError as alone:
                    first = first or ScoreError(
                        self.name, alone.problem, place=f"text {index}", index=index, rewards=rewards
                    )
            if first is None:
                raise
            first.rewards = rewards
            raise first from error.__cause__

    def _called(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """One call. Raises ScoreError."""
        nothing: list[float | None] = [None] * len(texts)
        index = 0 if len(texts) == 1 else None
        place = "text 0" if index == 0 else f"texts 0 to {len(texts) - 1} together"
        try:
            given = self.function(copy.deepcopy(list(prompts)), list(texts))  # a function may write into them
            is_list = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping | Set)
            values = list(given) if is_list else None
        except TrimtabError:
            raise
        except (Exception, SystemExit) as error:
            problem = f"failed on {{place}} ({type(error).__name__}: {_short(str(error))}{_line_of(error)})."
            raise ScoreError(self.name, problem, place=place, index=index, rewards=nothing) from error
        if values is None:
            problem = f"gave {_short(reprlib.repr(given))} for {{place}}; give a list of numbers, one for each text."
            raise ScoreError(self.name, problem, place=place, index=index, rewards=nothing)
        if len(values) != len(texts):
            problem = f"gave {len(values)} rewards for {len(texts)} texts ({{place}}); it must give one each."
            raise ScoreError(self.name, problem, place=place, index=index, rewards=nothing)
        numbers = [_number(value) for value in values]
        if None in numbers:
            index = numbers.index(None)
            problem = f"gave {_short(reprlib.repr(values[index]))} for {{place}}; {_NUMBERS}."
            raise ScoreError(self.name, problem, place=f"text {index}", index=index, rewards=_usable(numbers))
        return [number for number in numbers if number is not None]


def _number(value: Any) -> float | None:
    """A number as a float, NumPy's and a tensor of one element too; None for what is none, a bool among it."""
    if not isinstance(value, int | float) and hasattr(value, "item"):
        try:
            value = value.item()
        except Exception:  # of several elements, or without any
            return None
    if isinstance(value, bool) or not hasattr(type(value), "__float__"):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number or a fraction beyond what a float holds
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None


def _short(text: str) -> str:
    """A text as one line of at most 120 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 120 else line[:117] + "..."


def _line_of(error: BaseException) -> str:
    """Where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""


def _usable(numbers: Sequence[float | None]) -> list[float | None]:
    return [None if number is None or not abs(number) <= LARGEST else number for number in numbers]


def load_scorer(name: str) -> Scorer:
    """A scorer by name, a reward model by its directory or hub id, or a function of your own.

    `module:function` is looked for in the working directory, as `python -m` does, then where Python finds modules;
    `FILE.py:function` names the file. The function takes the prompts and the texts and returns one number for each; its
    module is imported, so it runs whatever it holds. What lies beside the file can be imported by it; nobody else finds
    it there, since `sys.path` is as before once it is imported, and changed again only while it is called. A name that
    is in `SCORERS` is never a directory: give `./sentiment` for one. Raises OptionError, CheckpointError for a
    directory that is not a reward model, or MissingExtraError where a package is not installed.

    >>> from trimtab import load_scorer
    >>> score = load_scorer("sentiment")
    >>> kind, unkind = score(["How was it?"] * 2, ["Wonderful, thank you!", "Terrible."])
    >>> kind > unkind
    True
    """
    if name in SCORERS:
        return SCORERS[name]()
    if Path(name).is_dir() or _HUB_ID.fullmatch(name):
        return _reward_model(name)
    if ":" in name:
        found = load_function(name)
        return Scorer(name, found.description, found.call)
    raise unknown_name("scorer", name, [*SCORERS, *_FORMS])


def check_scorer(name: str) -> None:
    """Raise what `load_scorer` would, as far as no reward model has to be loaded for it."""
    if name not in SCORERS and (Path(name).is_dir() or _HUB_ID.fullmatch(name)):
        _reward_directory(name)
    else:
        load_scorer(name)


def load_reward_model(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> RewardModel:
    """A trajectory reward model from a directory or a hub id: what `trimtab train reward` wrote, in either form, or
    any sequence-classification model of one label that transformers loads.

    An adapter's base is loaded too and must be the one it was trained on. `max_length` is what the model was trained
    with where it says so. Warns of one that ranked its held-out pairs worse than a coin. Raises CheckpointError for a
    directory that holds none, BaseMismatchError or VocabularyMismatchError for another base.
    """
    from trimtab.storage.cards import is_adapter

    directory, card = _reward_directory(name)
    limit = max_length or card.max_length
    if is_adapter(directory):
        model = _adapter_reward(str(name), directory, card, dtype, device, limit, trust_remote_code)
    else:
        from trimtab.models.rewards.whole import load_whole_reward_model

        model = load_whole_reward_model(
            directory,
            name=str(name),
            dtype=dtype,
            device=device,
            max_length=limit,
            trust_remote_code=trust_remote_code,
        )
    _check_template(str(name), model, card.written.get("reward"))
    if card.eval_accuracy_high is not None and card.eval_accuracy_high < 0.5:
        log.warning("%s ranked its own held-out pairs worse than a coin: the sign may be turned", name)
    return model


def _reward_directory(name: str | Path) -> tuple[Path, GuideCard]:
    from trimtab.storage.cards import is_adapter
    from trimtab.storage.directories import checked_card, resolve_model

    directory = resolve_model(name)
    card = checked_card(directory)
    if not card.guessed and card.kind != "reward":
        raise CheckpointError(
            f"{name} holds a guide of kind {card.kind!r}, which has no score head. Accepted: what `trimtab train "
            "reward` wrote, and sequence-classification models of one label."
        )
    if is_adapter(directory) and not card.base_name:
        raise CheckpointError(
            f"{name} holds an adapter but no guide.json that names its base, so it cannot be scored with. Merge it "
            "into its base with peft, which trained it, and give the directory of the result."
        )
    return directory, card


def _adapter_reward(
    name: str,
    directory: Path,
    card: GuideCard,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    max_length: int | None,
    trust_remote_code: bool,
) -> RewardModel:
    import torch

    from trimtab.models.rewards.adapter import merged_reward_module
    from trimtab.models.rewards.whole import RewardModel
    from trimtab.storage.loading import load_model

    assert card.base_name is not None
    # Merged in float32 on the CPU, whatever it runs in: a sum of roundings is not a reward.
    base = load_model(card.base_name, dtype="float32", device="cpu", trust_remote_code=trust_remote_code)
    module = merged_reward_module(base, directory, card.trained_on)
    assert base.tokenizer is not None
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype == "auto":
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return RewardModel(module.to(device, wanted), base.tokenizer.hf, name=name, max_length=max_length)


def _check_template(name: str, model: RewardModel, recorded: object) -> None:
    """Raise CompatibilityError where prompts would be written otherwise than in training."""
    if isinstance(recorded, Mapping) and "template" in recorded and recorded["template"] != model.template:
        raise CompatibilityError(
            f"{name} was trained with another chat template than its tokenizer has now, so it would read other text "
            "than it learnt from. Put the tokenizer's files of the base it was trained on back, or train it again."
        )


def _sentiment() -> Scorer:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise MissingExtraError("vaderSentiment", "demo", "The sentiment scorer") from error
    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [analyzer.polarity_scores(text)["compound"] for text in texts]

    return Scorer("sentiment", "VADER's compound sentiment of the answer, from −1 to 1", score)


def _offence() -> Scorer:
    try:
        from profanity_check import predict_prob
    except ImportError as error:
        raise MissingExtraError("alt-profanity-check", "scorers", "The offence scorer") from error

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [float(share) for share in predict_prob(list(texts))] if texts else []

    about = "alt-profanity-check's probability that the answer is offensive, from 0 to 1, higher is worse"
    return Scorer("offence", about, score)


def _reward_model(name: str) -> Scorer:
    from trimtab.storage.directories import resolve_model

    try:
        resolve_model(name)
    except CheckpointError as error:
        if Path(name).is_dir():
            raise
        raise OptionError(
            f"There is no scorer {name!r}: it is not a directory here, and the hub did not give it "
            f"({error.__cause__}). Accepted: {', '.join([*SCORERS, *_FORMS])}."
        ) from error
    model = load_reward_model(name)
    return Scorer(name, f"the reward model {name} ({type(model.module).__name__})", model.rewards)


SCORERS: dict[str, Callable[[], Scorer]] = {
    "sentiment": _sentiment,
    "offence": _offence,
    **{name: partial(Scorer, name, about, function) for name, (function, about) in EXACT.items()},
}
"""Name -> what builds it."""

_FORMS = ("module:function", "FILE.py:function", "the directory of a reward model", "the hub id of one (owner/name)")
"""What else `load_scorer` takes."""
