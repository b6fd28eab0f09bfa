"""Prompts to token ids, and whether two models speak of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from trimtab.core import Prompt, TokenIds, Tokenizer
from trimtab.errors import PromptError, VocabularyMismatchError


class Vocabulary(Protocol):
    """What knows a vocabulary: a language model, or a reward model that reads tokens."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def vocab_size(self) -> int: ...


def is_chat(prompt: Prompt) -> bool:
    """Whether a prompt is a list of chat messages."""
    return not isinstance(prompt, str) and len(prompt) > 0 and not isinstance(prompt[0], int)


def encode_prompt(model: Vocabulary, prompt: Prompt) -> list[int]:
    """A prompt as token ids. Raises PromptError for an empty one, or one that the model cannot read."""
    if not isinstance(prompt, Sequence):
        raise PromptError(f"The prompt is {prompt!r:.100}; give text, a list of token ids, or a list of chat messages.")
    given = not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt)
    if given:
        token_ids = [int(item) for item in prompt]  # type: ignore[arg-type]
    elif model.tokenizer is None:
        raise PromptError("This model has no tokenizer. Give the prompt as a list of token ids.")
    elif isinstance(prompt, str):
        token_ids = model.tokenizer.encode(prompt)
    else:
        token_ids = model.tokenizer.encode_chat(prompt)  # type: ignore[arg-type]
    if not token_ids:
        raise PromptError("The prompt is empty. Give at least one token.")
    check_readable(token_ids, num_readable(model), None if given else model.tokenizer)
    return token_ids


def num_readable(model: Vocabulary) -> int:
    """How many ids a model can be fed, from 0 on: rows of its embedding, which need be neither its vocabulary's size
    nor its tokenizer's."""
    return int(getattr(model, "num_embeddings", model.vocab_size))


def check_readable(
    token_ids: TokenIds, limit: int, tokenizer: Tokenizer | None = None, whose: str = "the model"
) -> None:
    """Raise PromptError for an id that is none of the first `limit`, in the words of the `tokenizer` that made it."""
    bad = next((token_id for token_id in token_ids if not 0 <= token_id < limit), None)
    if bad is None:
        return
    if tokenizer is None:
        raise PromptError(f"Token id {bad} is outside the vocabulary of {limit} ids that {whose} can read.")
    raise PromptError(
        f"The prompt holds {tokenizer.token_text(bad)!r}, which its tokenizer knows as token {bad}; {whose} has been "
        f"given no more than {limit} tokens and cannot read it. Leave it out."
    )


def guide_prompt_ids(model: Vocabulary, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
    """What a guide that is a model of its own reads: chat messages through its own template, where it has one."""
    if is_chat(prompt) and model.tokenizer is not None and model.tokenizer.has_chat_template:
        return encode_prompt(model, prompt)
    return base_ids


def check_same_vocabulary(base: Vocabulary, guide: Vocabulary) -> None:
    """Raise VocabularyMismatchError unless both map the same tokens to the same ids (padding of the logits aside)."""
    if guide is base:
        return
    ours, theirs = base.tokenizer, guide.tokenizer
    if ours is None or theirs is None:
        if base.vocab_size != guide.vocab_size:
            raise VocabularyMismatchError(
                f"The guide has {guide.vocab_size} token ids and the base {base.vocab_size}. Without tokenizers to "
                "compare, both must have the same number. Load both with their tokenizers."
            )
        return
    if ours.fingerprint == theirs.fingerprint:
        return
    mine, other = dict(ours.tokens), dict(theirs.tokens)
    different = [token for token, token_id in mine.items() if other.get(token) != token_id]
    missing = [token for token in other if token not in mine]
    example = min(different, key=mine.__getitem__) if different else missing[0]
    raise VocabularyMismatchError(
        f"The guide's vocabulary differs from the base's: {len(different)} of the base's {len(mine)} tokens have "
        f"another id or none in the guide, {len(missing)} of the guide's are unknown to the base; for example "
        f"{example!r} is {mine.get(example)} here and {other.get(example)} there. A guide must be trained on a model "
        "with the base's own tokenizer: train it on the base (`trimtab train arm --model BASE`)."
    )


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list. A list of ids or of messages is one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if items and isinstance(items[0], (int, Mapping)):
        return [prompts]  # type: ignore[list-item]
    return items  # type: ignore[return-value]
