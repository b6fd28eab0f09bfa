"""Values of a guide's card, read with checks: each error names the file, the key, the value and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, TypeVar, cast

from trimtab.errors import CheckpointError
from trimtab.models.trained_on import ModelFacts, VocabularyFacts

if TYPE_CHECKING:
    from trimtab.statistics import Interval

T = TypeVar("T")


ACCURACY = "eval_accuracy"
"""The share of held-out pairs that are ranked as they were labelled, by the reward that the training's loss is of."""
SHIFT_ACCURACY = "eval_shift_accuracy"
"""The same by Σ log π_r − Σ log π_base: by what the training added to its base."""
KL, BASE_KL = "eval_kl", "eval_base_kl"
"""KL from what sentences do, of a guide that was distilled from them and of its base: nats of held-out answers."""


def accuracy_in(metrics: Mapping[str, object], name: str = ACCURACY) -> Interval | None:
    """An accuracy with its interval out of a card's `metrics`; None where it was not measured."""
    return interval_in(metrics, name)


def interval_in(metrics: Mapping[str, object], name: str) -> Interval | None:
    """What a card's `metrics` say with its interval under this name; None where it was not measured."""
    from trimtab.statistics import Interval  # which needs numpy: the command line itself reads cards without

    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if not (_is_number(value) and _is_number(low) and _is_number(high)):
        return None
    return Interval(float(value), float(low), float(high))


def sign_accuracy(metrics: Mapping[str, object]) -> Interval | None:
    """The accuracy that shows whether a guide prefers what it should.

    By what the training added where that was measured: the base's own likelihood may rank the pairs the other way.
    None too where all held-out pairs are even (a margin of 0): nothing was learnt, so there is no sign.
    """
    if metrics.get("eval_margin") == 0:
        return None
    return accuracy_in(metrics, SHIFT_ACCURACY) or accuracy_in(metrics)


@dataclass(frozen=True, slots=True)
class Section:
    """Values under one key of a card, read with checks."""

    values: Mapping[str, object]
    path: Path
    place: str = ""

    def part(self, key: str) -> Section:
        value = self._get(key, _is_mapping, "an object")
        return Section(value or {}, self.path, f"{self.place}{key}.")

    def text(self, key: str) -> str | None:
        return self._get(key, _is_text, "a text")

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(self._get(key, _are_texts, "a list of texts") or ())

    def numbers(self, key: str) -> Sequence[float]:
        return self._get(key, _are_numbers, "a list of finite numbers") or ()

    def count(self, key: str) -> int | None:
        return self._get(key, _is_count, "a whole number of at least 0")

    def number(self, key: str) -> float | None:
        return self._get(key, _is_number, "a finite number")

    def model_facts(self) -> ModelFacts:
        """A model's description; other facts about it are kept as they are."""
        self.text("name")
        self.text("architecture")
        for key in ("num_layers", "hidden_size", "vocab_size"):
            self.count(key)
        self._get("norms", _are_numbers, "a list of finite numbers")
        return cast(ModelFacts, {key: value for key, value in self.values.items() if value is not None})

    def vocabulary_facts(self) -> VocabularyFacts:
        self.text("fingerprint")
        self.count("size")
        return cast(VocabularyFacts, {key: value for key, value in self.values.items() if value is not None})

    def _get(self, key: str, accepts: Callable[[object], TypeGuard[T]], accepted: str) -> T | None:
        value = self.values.get(key)
        if value is None or accepts(value):
            return value
        raise CheckpointError(
            f"{self.path}: {self.place}{key} is {value!r}; accepted: {accepted}. Mend the card, or train the "
            "guide again."
        )


def _is_mapping(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, Mapping)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _are_texts(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and all(map(_is_number, value))
