"""What is asked of an engine before it decodes: a maker of engines of one kind on one base.

A method, a command and a comparison are handed a maker and ask it for engines with these guides or with those; none of
them knows which kind it is. What a kind cannot do stands in its `refusals`, so it is said before anything is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch

from trimtab.core import Guide, KnownModel, LanguageModel, SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.documents import read_json
from trimtab.errors import OptionError
from trimtab.storage.model_source import ModelSource

SELECTING = "guides that select the token among candidates"
IN_PROCESS = "guides that are built on the loaded model"
PREFERENCES = "guides at a preference vector"
SECOND_BASE = "a second model that answers beside the base"
FORCED = "forced tokens"
CACHE_LIMIT = "a limit of cached tokens"
DEVICE = "a device of one's choice"
QUANTIZE = "weights of fewer bits"
RULES = "a rule for an agent's verdicts"
DRAFTS = "drafts of next tokens"
PROMPTS = "guides that read another prompt"
MASKS = "masks by a guide's own probabilities"
GATED = "gates of guides"
STATES = "guides that map the base's final state to logits"
DEFAULT_ROWS = 64
"""Requests that run at a time where nobody says."""
FEATURES = (
    SELECTING,
    IN_PROCESS,
    PREFERENCES,
    SECOND_BASE,
    FORCED,
    CACHE_LIMIT,
    DEVICE,
    QUANTIZE,
    RULES,
    DRAFTS,
    PROMPTS,
    MASKS,
    GATED,
    STATES,
)
"""What a method or a command may need of an engine beyond decoding with guides that tilt."""


@dataclass(frozen=True, slots=True)
class GuideSource:
    """A guide by name, and how it is loaded (see `load_guide`)."""

    path: str
    weight: float | None = None
    """In a request that does not name it. None: the guide's own (1; an agent's ½)."""
    form: str | None = None
    guide_base: str | None = None
    preference: tuple[float, ...] | None = None
    rule: str | None = None


Guides: TypeAlias = Mapping[str, GuideSource | Guide]
"""Guides by the names that requests call them; one that is built already needs an engine with `IN_PROCESS`."""


class EngineMaker(ABC):
    """Makes engines of one kind on one base, which is loaded when it is first needed."""

    name: ClassVar[str]
    """What `--engine` calls this kind."""
    refusals: ClassVar[Mapping[str, str]] = {}
    """A feature of `FEATURES` that this kind does not have -> why, and the way out, as one sentence."""
    holds_one: ClassVar[bool] = False
    """Whether one engine lives at a time, so that `make` with other guides ends the one before."""
    plans_caches: ClassVar[bool] = False
    """Whether the engine divides its memory, and the prompts of a step, by itself."""

    max_rows: int
    """Requests that run at a time in an engine that is made without a number of its own."""

    @classmethod
    @abstractmethod
    def open(cls, source: ModelSource, options: Mapping[str, object], *, max_rows: int = DEFAULT_ROWS) -> EngineMaker:
        """A maker for this base; nothing is loaded yet. `options` have passed `check_options`."""

    @classmethod
    @abstractmethod
    def check_options(cls, options: Mapping[str, object], *, verbose: bool = False) -> None:
        """Raise OptionError for an unknown option, MissingExtraError where the kind is not installed."""

    @classmethod
    def check_params(cls, params: SamplingParams) -> None:
        """Raise OptionError for sampling parameters that the kind cannot honour."""
        return  # most kinds honour all of them

    @classmethod
    def check_features(cls, needed: Iterable[str], *, what: str) -> None:
        """Raise OptionError where `what` (a method, a flag) needs a feature that the kind does not have."""
        for feature in needed:
            if feature in cls.refusals:
                raise OptionError(f"{what} cannot be used with --engine {cls.name}: {cls.refusals[feature]}")

    @classmethod
    def runs(cls, needed: Iterable[str]) -> bool:
        """Whether the kind has all of these features."""
        return not any(feature in cls.refusals for feature in needed)

    @classmethod
    def packed_guides(cls, model: str) -> Mapping[str, float] | None:
        """The guides, with their weights, of a model whose directory holds them; None: guides are given to it."""
        return None

    @property
    @abstractmethod
    def facts(self) -> KnownModel:
        """What the base is: its tokenizer, sizes and name."""

    @property
    @abstractmethod
    def model(self) -> LanguageModel:
        """The base, loaded in this process. Raises OptionError for a kind without `IN_PROCESS`."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the engine computes."""

    @property
    def settings(self) -> Mapping[str, object]:
        """What answers depend on beside the base, the guides and the requests; empty for the built-in engine."""
        return {}

    @property
    def contents(self) -> Mapping[str, object]:
        """What the base's directory says beside its files' digest, where that decides answers too."""
        return {}

    @abstractmethod
    def describe(self) -> Mapping[str, object]:
        """What tells the base from another."""

    @abstractmethod
    def make(
        self,
        guides: Guides | None = None,
        *,
        max_rows: int | None = None,
        prefill_chunk: int | None = None,
        drafters: Collection[str] = (),
        copies: str | None = None,
    ) -> GenerationEngine:
        """An engine with these guides. At most `max_rows` requests run at a time (None: the maker's); a step feeds at
        most `prefill_chunk` tokens of prompts (None: as the kind does by itself). `drafters` are models that requests
        may name in `draft`. `copies` says what weights copies of the guides are held in, which draft in their stead.

        A kind that holds one engine at a time ends the one before, unless its guides are the same. Raises OptionError
        and what `load_guide` raises.
        """

    @abstractmethod
    def itself(self) -> GuideSource | Guide:
        """The base as a guide of its own, a product."""

    def beside(self, name: str) -> EngineMaker:
        """A maker of this kind for a second base. Raises OptionError for a kind without `SECOND_BASE`."""
        self.check_features([SECOND_BASE], what=f"A second model ({name})")
        return type(self).open(ModelSource(name), {}, max_rows=self.max_rows)

    def close(self) -> None:  # noqa: B027  most kinds hold nothing that outlives them
        """End the engines that run elsewhere."""


def engine_option(key: str, text: str) -> tuple[str, object]:
    """An option of an engine as somebody wrote it: the key with underscores; JSON where the text is some, else text."""
    try:
        return key.replace("-", "_"), read_json(text)
    except ValueError:
        return key.replace("-", "_"), text


def no_options(name: str, options: Collection[str]) -> None:
    """Raise OptionError where options are given to a kind of engine that has none."""
    if options:
        raise OptionError(
            f"--engine-option {next(iter(options))} is not accepted: the engine {name} has no options of its own. "
            "Give --engine NAME with an option of that engine."
        )
