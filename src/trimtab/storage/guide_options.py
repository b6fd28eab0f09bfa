"""What may be asked of a guide when it is loaded, and the refusal of what means nothing to its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trimtab.core import LanguageModel, Prompt
from trimtab.errors import OptionError

if TYPE_CHECKING:
    from trimtab.models.llama.options import LlamaOptions


@dataclass(frozen=True, slots=True)
class GuideOptions:
    """What `load_guide` was asked for; a kind of guide refuses what means nothing to it."""

    model: LanguageModel | None = None
    form: str | None = None
    weight: float | None = None
    prompt: Prompt | Callable[[Prompt], Prompt] | None = None
    rule: str | None = None
    preference: Sequence[float] | None = None
    dtype: str | torch.dtype = "auto"
    device: str | torch.device | None = None
    trust_remote_code: bool = False
    quantize: str | None = None
    llama: LlamaOptions | None = None
    """How llama.cpp runs a guide that is a GGUF file; None: transformers does."""


def refuse_form(directory: Path, options: GuideOptions) -> None:
    """Raise OptionError where a form is asked of a guide that is not a language model of its own."""
    if options.form is not None:
        raise OptionError(
            f"{directory} is not a language model of its own, so it has no form; leave {options.form!r} out. It "
            "selects among a few candidates, is a sentence, or reads the model's states."
        )


def refuse_prompt(directory: Path, options: GuideOptions) -> None:
    """Raise OptionError where a prompt is given to a guide that reads the steered model's states."""
    if options.prompt is not None:
        raise OptionError(f"{directory} reads the model's states, so it has no prompt of its own; leave `prompt` out.")


def refuse_rule(directory: Path, options: GuideOptions) -> None:
    """Raise OptionError where a rule is asked of a guide that tilts."""
    if options.rule is not None:
        raise OptionError(f"{directory} tilts, so it takes no rule; leave {options.rule!r} out.")


def refuse_preference(directory: Path, options: GuideOptions) -> None:
    """Raise OptionError where a preference is given to a guide of one objective."""
    if options.preference is not None:
        raise OptionError(
            f"{directory} has one objective, so it takes no preference; leave it out, or give a guide that "
            "`trimtab train parm` wrote."
        )
