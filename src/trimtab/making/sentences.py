"""Where a sentence that tells a model how to answer stands in front of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.core import Message, Prompt, Tokenizer
from trimtab.errors import PromptError
from trimtab.guides import sentences as guide_sentences
from trimtab.guides.prompt import said_in
from trimtab.guides.sentences import SEPARATOR
from trimtab.prompts import is_chat

SYSTEM, USER, TEXT = "system message", "user's message", "text"
"""The places: a system message; the beginning of the user's first message; the beginning of a raw text."""


def takes_system(tokenizer: Tokenizer) -> bool:
    """Whether the model's chat template writes a system message, rather than refuse it or leave it out."""
    try:
        tokenizer.encode_chat([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}])
    except PromptError:
        return False
    return True


def place_of(prompt: Prompt, *, system: bool) -> str:
    """Where a sentence stands in front of this prompt; `system` says whether the template has a system message."""
    return TEXT if isinstance(prompt, str) else SYSTEM if system else USER


def with_sentence(prompt: Prompt, sentence: str, *, system: bool) -> Prompt:
    """The prompt with the sentence in front of it.

    A system message that the prompt has already follows the sentence in the same message. Without `system` (a template
    that has no such role) the sentence begins the user's first message. Raises PromptError for token ids, and for
    messages without a user's.
    """
    if isinstance(prompt, str):
        return sentence + SEPARATOR + prompt
    if not is_chat(prompt):
        raise PromptError("A sentence cannot stand before token ids. Give the prompt as text or chat messages.")
    messages: Sequence[Message] = prompt  # type: ignore[assignment]
    if not system and all(message["role"] != "user" for message in messages):
        raise PromptError("The prompt has no user's message that the sentence could begin. Give one.")
    return said_in(messages, sentence, guide_sentences.SYSTEM if system else guide_sentences.USER, SEPARATOR)
