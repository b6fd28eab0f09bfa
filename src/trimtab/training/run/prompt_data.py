"""Prompts to learn from: through the chat template where that is wanted, told apart by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.core import Prompt
from trimtab.errors import DataError, OptionError, naming
from trimtab.prompts import as_json, with_options

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
