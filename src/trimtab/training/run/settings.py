"""What can be set about a training run, checked before anything is loaded.

`RunSettings` is what every method that trains a language model shares, `PairSettings` what those that learn from
preference pairs add. Each method has a class of its own below them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.errors import OptionError, naming
from trimtab.mixing.forms import FORMS

ALL_LINEAR = "all-linear"
DTYPES = ("auto", "float32", "bfloat16")
"""How a guide that is a language model scores: by its log-probabilities, or by what they add to its base's."""
NOT_OF_THE_RUN = ("save_steps", "save_minutes", "save_episodes", "report_to")
"""Settings that no answer depends on: a run may be continued with others."""


class Follows(int):
    """A number that nobody set: it follows from other settings, in every copy of them anew."""


FOLLOWS = Follows(0)
"""The default of a setting that follows others."""


def follow(settings: object, name: str, value: Callable[[], int]) -> None:
    """Give a setting that nobody set its value."""
    if isinstance(getattr(settings, name), Follows):
        object.__setattr__(settings, name, Follows(value()))  # in __post_init__ of a frozen class


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Optimiser, adapter, precision and reports of a run."""

    full: bool = False
    """Train all weights; else a LoRA adapter."""
    learning_rate: float = 5e-4
    """Peak of the cosine schedule."""
    warmup_share: float = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = (ALL_LINEAR,)
    """Names of the layers to adapt, such as q_proj and v_proj; "all-linear": every linear layer that can run row by
    row, but the output head."""
    lora_last_layers: int = 0
    """Adapt only so many of the last blocks, which saves the backward pass through the others; 0: all blocks."""
    batch_size: int = 2
    """Pairs in one forward pass, in each process."""
    gradient_accumulation: int = 16
    """Forward passes in one step. Pairs in a step: batch_size × gradient_accumulation × processes."""
    seed: int = 0
    dtype: str = "auto"
    """float32, bfloat16, or auto: bfloat16 on a GPU that has it, float32 elsewhere (it is faster on CPUs)."""
    save_dtype: str = "float32"
    """Of the weights in the directory that is written."""
    gradient_checkpointing: bool = False
    logging_steps: int = 5
    save_steps: int = 50
    """Steps between checkpoints; 0: none by steps."""
    save_minutes: float = 5.0
    """Minutes between checkpoints, more where writing one takes long (`cadence.MAX_SHARE`); 0: none by minutes."""
    report_to: tuple[str, ...] = ()
    """Trackers: tensorboard, wandb, trackio, mlflow, ..."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        check_above_zero(self, _RUN_POSITIVE)
        check_not_negative(self, _RUN_NOT_NEGATIVE)
        check_below_one(self, ("lora_dropout", "warmup_share"))
        check_choice(self, "dtype", DTYPES)
        check_choice(self, "save_dtype", DTYPES[1:])
        if not self.lora_targets and not self.full:
            raise naming(
                OptionError, "{lora_targets} is empty; name at least one layer, or train all weights with {full}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings(RunSettings):
    """Which preference pairs are learnt from, and how they are measured on."""

    epochs: float = 1.0
    max_pairs: int = 0
    """Train on a random sample of so many pairs; 0: all."""
    max_prompts_per_response: int = 10
    """Leave out (and count) pairs with a response that answers more different prompts than this; 0: keep all."""
    max_length: int = 1024
    """Tokens of prompt and response; what is longer is cut and counted."""
    eval_share: float = 0.05
    """Share of the prompts held out for evaluation where no evaluation pairs are given; 0: none."""
    eval_steps: int = 0
    """Evaluate every so many steps too; 0: at the end."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        RunSettings.__post_init__(self)  # not super(): a class with slots is not the one that its body knows
        check_above_zero(self, ("epochs", "max_length"))
        check_not_negative(self, ("max_pairs", "max_prompts_per_response", "eval_share", "eval_steps"))
        check_below_one(self, ("eval_share",))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSettings(PairSettings):
    """How an autoregressive reward model is trained. The defaults are GenARM's for HH-RLHF, but for the dropout."""

    beta: float = 0.05
    """β_r of the loss."""
    gamma: float = 0.0
    """γ of the loss: a target for the margin."""
    max_prompt_length: int = FOLLOWS
    """Tokens of the prompt; unset: half of max_length."""
    form: str = "product"
    """How the guide steers: "product", the paper's, scores log π_r; "shift" takes its base's share off, log π_r − log
    π_base. Training is the same."""
    share_rows: bool = True
    """Keep pairs that share a response in one batch, where its row is run once."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        PairSettings.__post_init__(self)
        check_above_zero(self, ("beta",))
        check_prompt_length(self)
        check_choice(self, "form", FORMS)
        if not math.isfinite(self.gamma):
            raise naming(OptionError, "{gamma} is {0}; give a finite number.", self.gamma)


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a run stands. `metrics` is empty for a plain step; else it is a line of the curve."""

    step: int
    num_steps: int
    metrics: Mapping[str, float]


_RUN_POSITIVE = (
    *("learning_rate", "max_grad_norm", "lora_rank", "lora_alpha", "batch_size", "gradient_accumulation"),
    "logging_steps",
)
_RUN_NOT_NEGATIVE = (
    *("warmup_share", "weight_decay", "lora_dropout", "lora_last_layers", "seed", "save_steps", "save_minutes"),
)


def check_above_zero(settings: object, names: Iterable[str]) -> None:
    """Raise OptionError for a setting that is not a finite number above 0."""
    _check(settings, names, lambda value: value > 0, "above 0")


def check_not_negative(settings: object, names: Iterable[str]) -> None:
    """Raise OptionError for a setting that is not a finite number of at least 0."""
    _check(settings, names, lambda value: value >= 0, "at least 0")


def check_below_one(settings: object, names: Iterable[str]) -> None:
    """Raise OptionError for a setting that is not a finite number below 1."""
    _check(settings, names, lambda value: value < 1, "below 1")


def check_choice(settings: object, name: str, accepted: Sequence[str]) -> None:
    """Raise OptionError for a setting that is none of the accepted ones."""
    value = getattr(settings, name)
    if value not in accepted:
        raise naming(OptionError, f"{{{name}}} is {{0!r}}; accepted: {', '.join(accepted)}.", value)


class _Lengths(Protocol):
    @property
    def max_length(self) -> int: ...
    @property
    def max_prompt_length(self) -> int: ...


def check_prompt_length(settings: _Lengths) -> None:
    """Let the prompt's length follow where it is not set. Raises OptionError where no room is left for a response."""
    follow(settings, "max_prompt_length", lambda: settings.max_length // 2)
    prompt, whole = settings.max_prompt_length, settings.max_length
    if prompt == 0 and isinstance(prompt, Follows):
        raise naming(OptionError, "{max_length} is {0}; give at least 2: a prompt and a response.", whole)
    if not 0 < prompt < whole:
        raise naming(
            OptionError,
            "{max_prompt_length} {0} leaves no room for a response in {max_length} {1}; give a number above 0 and "
            "below {max_length}, or none: half of it.",
            *(prompt, whole),
        )


def _check(settings: object, names: Iterable[str], accepts: Callable[[float], bool], what: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and accepts(value)):
            raise naming(OptionError, f"{{{name}}} is {{0}}; give a finite number {what}.", value)
