"""What can be set about a training run, checked before anything is loaded.

`RunSettings` is what every method that trains a language model shares, `PairSettings` what those that learn from
preference pairs add. Each method has a class of its own below them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from trimtab.errors import OptionError, naming
from trimtab.fields import FOLLOWS, FOLLOWS_REAL, Follows, check, described, follow, seed_field, shown
from trimtab.mixing.forms import FORMS, SHIFT

ALL_LINEAR = "all-linear"
DTYPES = ("auto", "float32", "bfloat16")
"""What a run computes in; all but the first, what it writes its weights in."""
BASE = "base"
REFERENCES = ("none", BASE)
"""What an autoregressive reward model may be compared with in its loss."""
NOT_OF_THE_RUN = ("save_steps", "save_minutes", "save_episodes", "report_to")
"""Settings that no answer depends on: a run may be continued with others."""


def prompt_length_field() -> int:
    """The field of a prompt's length, which follows `max_length`."""
    return described(FOLLOWS, "tokens of the prompt, cut from the left; not given: half of {max_length}", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Optimiser, adapter, precision and reports of a run."""

    full: bool = described(False, "train all weights, not an adapter")
    learning_rate: float = described(5e-4, "peak of the cosine schedule", above=0)
    warmup_share: float = described(0.03, "share of the steps in which the learning rate rises from 0", low=0, below=1)
    weight_decay: float = described(0.0, "of AdamW", low=0)
    max_grad_norm: float = described(1.0, "longer gradients are clipped", above=0)
    lora_rank: int = described(8, "rank of the adapter", low=1)
    lora_alpha: float = described(16.0, "scale of the adapter: alpha / rank", above=0)
    lora_dropout: float = described(0.0, "before the adapter", low=0, below=1)
    lora_targets: tuple[str, ...] = described(
        (ALL_LINEAR,),
        "layers to adapt, such as q_proj,v_proj; all-linear: every linear layer that can run row by row, but the "
        "output head",
    )
    lora_last_layers: int = described(
        0,
        "adapt only this many of the last blocks, which saves the backward pass through the others",
        low=0,
        note="0: all",
    )
    batch_size: int = described(2, "pairs in one forward pass of a process", low=1)
    gradient_accumulation: int = described(
        16, "forward passes in one step, which learns from {batch_size} times as many pairs in each process", low=1
    )
    seed: int = seed_field(0, "of the adapter, the order and the sample")
    dtype: str = described(
        "auto",
        "to compute in; auto: bfloat16 on a GPU that has it, and on a CPU where the model's products are found to be "
        "faster in it, in one process; else float32",
        choices=DTYPES,
    )
    save_dtype: str = described("float32", "of the weights that are written", choices=DTYPES[1:])
    gradient_checkpointing: bool = described(False, "less memory, more time")
    logging_steps: int = described(5, "steps between lines of the curve", low=1)
    save_steps: int = described(50, "steps between checkpoints", low=0, note="0: none by steps")
    save_minutes: float = described(
        5.0, "minutes between checkpoints, longer where writing one takes long", low=0, note="0: none by minutes"
    )
    report_to: tuple[str, ...] = described(
        (), "trackers: tensorboard, wandb, trackio, mlflow, ...", metavar="NAME,...", unset="none"
    )

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        check(self)
        if not self.lora_targets and not self.full:
            raise naming(
                OptionError, "{lora_targets} is empty; name at least one layer, or train all weights with {full}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings(RunSettings):
    """Which preference pairs are learnt from, and how they are measured on."""

    epochs: float = described(1.0, "passes over the pairs; fractions are accepted", above=0)
    max_pairs: int = described(0, "train on a random sample of this many pairs", low=0, note="0: all")
    max_prompts_per_response: int = described(
        10,
        "leave out (and count) pairs with a response that answers more different prompts than this",
        low=0,
        note="0: keep all",
    )
    max_length: int = described(1024, "tokens of prompt and response; what is longer is cut and counted", low=1)
    eval_share: float = described(
        0.05, "share of the prompts held out where there is no {eval_data}", low=0, below=1, note="0: none"
    )
    eval_steps: int = described(0, "steps between evaluations", low=0, note="0: only at the end")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRewardSettings(PairSettings):
    """How a model whose log-probabilities are rewards is trained. The defaults are GenARM's for HH-RLHF, but for the
    dropout."""

    beta: float = described(0.05, "scale of the reward in the loss", above=0)
    """β_r of the loss."""
    gamma: float = described(0.0, "margin to be exceeded in the loss")
    """γ of the loss."""
    max_prompt_length: int = prompt_length_field()
    form: str = described(
        "product",
        "how the guide steers: product, the paper's, by its log-probabilities; shift, by what they add to its base's. "
        "Training is the same",
        choices=FORMS,
    )
    """"product" scores log π_r; "shift" takes its base's share off, log π_r − log π_base."""
    share_rows: bool = described(True, "keep pairs that share a response in one batch, where its row is run once")

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        PairSettings.__post_init__(self)  # not super(): a class with slots is not the one that its body knows
        follow_max_length(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSettings(TokenRewardSettings):
    """How an autoregressive reward model is trained, alone as GenARM's is, or beside its base as it will be used."""

    reference: str = described(
        "none",
        "what the guide's log-probabilities are compared with in the loss: none, the paper's way; base trains what a "
        "{form} shift steers by",
        choices=REFERENCES,
    )
    """"base": a response's reward is Σ log π_r − log π_base, which makes the loss that of DPO (arXiv 2305.18290)."""
    head_only: int = described(
        0,
        "train a low-rank head on the frozen model's final state, of this rank, and no adapter (PALC's rank is 256); "
        "its loss is on what base and head say together, averaged over the tokens of a response",
        low=0,
        note="0: an adapter",
    )
    beta: float = described(
        FOLLOWS_REAL, "scale of the reward in the loss; not given: 0.05, with {head_only} 1", above=0
    )
    """β_r of the loss: of sums over a response's tokens, with `head_only` of means."""
    through_mix: float = described(
        0.0,
        "train on what base and guide say together, the guide at this weight in its {form}, as decoding mixes them",
        low=0,
        note="0: on the guide's alone, with {head_only} at weight 1",
    )

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        TokenRewardSettings.__post_init__(self)
        follow(self, "beta", lambda: 1.0 if self.head_only else 0.05)
        if self.head_only:
            check_head(self)
        if self.reference == BASE and self.form != SHIFT:
            raise naming(
                OptionError,
                "{form} is {0}, and with {reference} base a guide is trained for what it adds to its base. Give {form} "
                "shift.",
                self.form,
            )
        if self.reference == BASE and self.through_mix:
            raise naming(
                OptionError,
                "{through_mix} is {0:g}, and {reference} base: the base is in the mix already. Give one of them.",
                self.through_mix,
            )

    @property
    def is_beside_base(self) -> bool:
        """Whether the base's log-probabilities are in the loss too."""
        return self.reference == BASE or self.through_mix > 0 or self.head_only > 0

    @property
    def mix_weight(self) -> float:
        """The guide's weight in the mix that the loss is of; 0: it is of the guide's own log-probabilities."""
        return self.through_mix or (1.0 if self.head_only else 0.0)


def check_head(settings: RunSettings) -> None:
    """Raise OptionError for a setting that says nothing of a head, where a head alone is trained."""
    defaults = {field.name: field.default for field in fields(settings)}
    for name, reason in _NOT_OF_A_HEAD.items():
        if name in defaults and (value := getattr(settings, name)) != defaults[name]:
            said = "is given" if value is True else f"is {shown(value)}"
            raise naming(OptionError, f"{{{name}}} {{0}}, and {{head_only}} {reason}. Leave one of them out.", said)


_NOT_OF_A_HEAD: Mapping[str, str] = {
    "full": "trains nothing but a head",
    "lora_rank": "is the rank of what is trained",
    "lora_alpha": "trains no adapter, and the weight is the head's scale",
    "lora_targets": "trains no layer of the model",
    "lora_last_layers": "trains no layer of the model",
    "gradient_checkpointing": "has no backward pass through the model's layers, so that nothing is saved",
    "reference": "trains what is added to the base as it is, so the base is its reference",
    "form": "trains what is added to the base's logits, which has no other form",
}
"""A setting -> why it means nothing where a head alone is trained, after the name of `head_only`."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a run stands. `metrics` is empty for a plain step; else it is a line of the curve."""

    step: int
    num_steps: int
    metrics: Mapping[str, float]


class _Lengths(Protocol):
    @property
    def max_length(self) -> int: ...
    @property
    def max_prompt_length(self) -> int: ...


def follow_max_length(settings: _Lengths) -> None:
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
