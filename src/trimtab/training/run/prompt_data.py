"""Prompts to learn from: through the chat template where that is wanted, told apart by their content."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trimtab.core import Prompt
from trimtab.errors import DataError, OptionError, naming
from trimtab.prompts import as_json, encode_prompt, with_options

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel

log = logging.getLogger(__name__)

TEMPLATES = ("auto", "chat", "raw")
"""What a prompt of text is: a user's message where the model has a chat template, always one, or text to go on with."""


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A prompt and the ids that it is answered from."""

    prompt: Prompt
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrainingPrompts:
    """Prompts to learn from, and what a prompt of text is."""

    prompts: Sequence[Prompt]
    template: str = "raw"
    """One of `TEMPLATES`."""
    options: Mapping[str, object] | None = None
    """What the chat template is told with each prompt."""
    files: Sequence[str] = ()
    """Where they come from, for the model card."""

    def check(self) -> None:
        """Raise DataError where there is no prompt, OptionError for an unknown template."""
        if isinstance(self.prompts, str) or not self.prompts:
            raise DataError("There is no prompt to train on. Give a list of at least one.")
        if self.template not in TEMPLATES:
            raise naming(OptionError, "{template} is {0!r}; accepted: {1}.", self.template, ", ".join(TEMPLATES))

    def templated(self, *, has_chat_template: bool) -> list[Prompt]:
        """Text as a user's message where that is wanted, each prompt with what the chat template is told.

        Raises OptionError for a template that the model does not have, PromptError for options of a template beside a
        prompt that goes through none.
        """
        if self.template == "chat" and not has_chat_template:
            raise OptionError(
                "chat is asked for, and the model has no chat template. Give raw, or a model tuned for chat."
            )
        raw = self.template == "raw" or not has_chat_template
        asked = [
            [{"role": "user", "content": item}] if isinstance(item, str) and not raw else item for item in self.prompts
        ]
        return [with_options(prompt, self.options or {}) for prompt in asked]

    @property
    def card(self) -> dict[str, object]:
        """`data` of a `guide.json`: what a resumed run must share of its prompts."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(json.dumps(as_json(prompt), sort_keys=True).encode() + b"\n")
        return {
            "fingerprint": digest.hexdigest(),
            "files": list(self.files),
            "num_prompts": len(self.prompts),
            "template": self.template,
            **({"template_options": dict(self.options)} if self.options else {}),
        }


class AnswerSettings(Protocol):
    """The settings that say which prompts are answered, and how long the answers are."""

    @property
    def max_prompts(self) -> int: ...
    @property
    def max_prompt_length(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...


def tokenised(host: HFModel, data: TrainingPrompts, settings: AnswerSettings) -> tuple[list[PromptIds], int]:
    """The prompts to train on, and how many were left out because they are too long.

    Raises DataError where none is left, OptionError where prompt and answer are more than the model can hold.
    """
    assert host.tokenizer is not None
    ready = data.templated(has_chat_template=host.tokenizer.has_chat_template)
    encoded = [PromptIds(prompt, tuple(encode_prompt(host, prompt))) for prompt in ready]
    kept = [prompt for prompt in encoded if len(prompt.token_ids) <= settings.max_prompt_length]
    num_long = len(encoded) - len(kept)
    if not kept:
        raise naming(
            DataError,
            "All {0} prompts have more than {1} tokens ({max_prompt_length}). Give shorter prompts, or allow longer "
            "ones.",
            *(num_long, settings.max_prompt_length),
        )
    if num_long:
        log.warning("%d prompts of more than %d tokens are left out", num_long, settings.max_prompt_length)
    if 0 < settings.max_prompts < len(kept):
        chosen = sorted(random.Random(settings.seed).sample(range(len(kept)), settings.max_prompts))
        kept = [kept[index] for index in chosen]
    longest = max(len(prompt.token_ids) for prompt in kept)
    if host.max_length is not None and longest + settings.max_new_tokens > host.max_length:
        raise naming(
            OptionError,
            "The longest prompt has {0} tokens; with {1} new ones ({max_new_tokens}) that is more than the {2} that "
            "{3} can hold. Give a smaller {max_new_tokens} or {max_prompt_length}.",
            *(longest, settings.max_new_tokens, host.max_length, host.name),
        )
    return kept, num_long


def prompt_order(num_prompts: int, step_size: int, *, epochs: float, seed: int) -> list[int]:
    """Prompt numbers for whole steps of `step_size`: pass after pass, each in an order of its own."""
    import torch

    num_steps = max(1, math.ceil(epochs * num_prompts / step_size))
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < num_steps * step_size:
        order += torch.randperm(num_prompts, generator=generator).tolist()
    return order[: num_steps * step_size]
