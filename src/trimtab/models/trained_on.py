"""What tells one model from another, and which model an adapter was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict


class ModelFacts(TypedDict, total=False):
    """A model as it describes itself: its name, its sizes, and the mean of some norm weights. What is unknown is left
    out."""

    name: str
    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    norms: list[float]


class VocabularyFacts(TypedDict, total=False):
    """A vocabulary, known by a digest of its content."""

    fingerprint: str
    size: int
    """Tokens."""


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The model that an adapter was trained on; empty where nobody wrote it down (a plain peft adapter)."""

    base: ModelFacts = field(default_factory=ModelFacts)
    vocabulary: VocabularyFacts = field(default_factory=VocabularyFacts)


UNKNOWN = TrainedOn()
