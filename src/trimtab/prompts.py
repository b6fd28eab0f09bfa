"""Prompts to token ids, and whether two models speak of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

from trimtab.calls import CallFormat
from trimtab.core import Chat, KnownModel, Prompt, TokenIds, Tokenizer
from trimtab.errors import OptionError, PromptError, VocabularyMismatchError


class Vocabulary(Protocol):
    """What knows a vocabulary: a language model, or a reward model that reads tokens."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def vocab_size(self) -> int: ...


def is_chat(prompt: Prompt) -> bool:
    """Whether a prompt is a list of chat messages."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def encode_prompt(model: Vocabulary, prompt: Prompt) -> list[int]:
    """A prompt as token ids, each of which the model has a row for.

    Raises PromptError for an empty one, and for one that the model or its chat template cannot read.
    """
    prompt = _listed(prompt)
    tokenizer = model.tokenizer
    given = not isinstance(prompt, str) and all(isinstance(item, Integral) for item in prompt)
    if given:
        if any(isinstance(item, bool) for item in prompt):
            raise PromptError("A truth value stands among the token ids of the prompt. Give whole numbers.")
        token_ids = [int(item) for item in prompt]  # type: ignore[arg-type]
    elif tokenizer is None:
        raise PromptError("This model has no tokenizer. Give the prompt as a list of token ids.")
    elif isinstance(prompt, str):
        token_ids = tokenizer.encode(prompt)
    else:
        token_ids = tokenizer.encode_chat(prompt)  # type: ignore[arg-type]
    if not token_ids:
        raise PromptError("The prompt is empty. Give at least one token.")
    check_readable(token_ids, num_readable(model), None if given else tokenizer)
    return token_ids


def check_ids(model: Vocabulary, token_ids: TokenIds) -> None:
    """Raise PromptError for a token id that the model has no row for, in the words of its tokenizer."""
    check_readable(token_ids, num_readable(model), model.tokenizer)


def num_readable(model: Vocabulary) -> int:
    """How many ids a model can be fed, from 0 on: rows of its embedding, which need be neither its vocabulary's size
    nor its tokenizer's."""
    return int(getattr(model, "num_embeddings", model.vocab_size))


def check_readable(
    token_ids: TokenIds, limit: int, tokenizer: Tokenizer | None = None, whose: str = "the model"
) -> None:
    """Raise PromptError for an id that is not below `limit`, in the words of the `tokenizer` that made it."""
    bad = next((token_id for token_id in token_ids if not 0 <= token_id < limit), None)
    if bad is None:
        return
    tokens = {} if tokenizer is None else tokenizer.tokens
    named = next((token for token, token_id in tokens.items() if token_id == bad), None)
    if named is None:
        raise PromptError(f"Token id {bad} is outside the vocabulary of {limit} ids that {whose} can read.")
    raise PromptError(
        f"The prompt holds {named!r}, which its tokenizer knows as token {bad}; {whose} has been given no more than "
        f"{limit} tokens and cannot read it. Leave it out."
    )


def _listed(prompt: Prompt) -> Prompt:
    """A prompt as text or a sequence: arrays and tensors are lists of ids. Raises PromptError for anything else."""
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        return prompt
    shown = str(prompt)
    raise PromptError(
        f"The prompt is a {type(prompt).__name__} ({shown if len(shown) < 60 else shown[:60] + '...'}); give a text, a "
        "list of token ids, or a list of chat messages."
    )


def with_options(prompt: Prompt, options: Mapping[str, Any], *, required: bool = True) -> Prompt:
    """A chat prompt that says these options to the chat template; what it says already stays.

    Raises PromptError for a prompt that goes through no template: text or token ids.
    """
    if not options:
        return prompt
    if not is_chat(prompt):
        raise PromptError(
            f"The option {next(iter(options))!r} is for a chat template, and this prompt goes through none: it is raw "
            "text or token ids. Give chat messages, or leave the option out."
        )
    said = prompt.options if isinstance(prompt, Chat) else {}
    kept = required and (prompt.required if isinstance(prompt, Chat) else True)
    opened = prompt.opened if isinstance(prompt, Chat) else None
    return Chat(prompt, {**options, **said}, required=kept, opened=opened)  # type: ignore[arg-type]


def check_options(model: Vocabulary, options: Mapping[str, Any]) -> None:
    """Raise OptionError for options that the model's chat template does not read, or refuses, whatever is asked."""
    if not options:
        return
    try:
        encode_prompt(model, Chat([{"role": "user", "content": "a"}], options))
    except PromptError as error:
        raise OptionError(f"The options of the chat template cannot be served. {error}") from None


def options_of(prompt: Prompt) -> Mapping[str, Any]:
    """What a prompt says to the chat template besides its messages."""
    return prompt.options if isinstance(prompt, Chat) else {}


@runtime_checkable
class ReadsKeys(Protocol):
    """A tokenizer that knows what its chat template reads of a message."""

    def reads_key(self, key: str) -> bool: ...


def reads_key(model: Vocabulary, key: str) -> bool:
    """Whether the model's chat template may read this key of a message, besides its role and content."""
    return isinstance(model.tokenizer, ReadsKeys) and model.tokenizer.reads_key(key)


@runtime_checkable
class WritesCalls(Protocol):
    """A tokenizer that knows how its chat template writes calls of tools."""

    def call_format(self, options: Mapping[str, Any], end_ids: frozenset[int]) -> CallFormat:
        """How calls are written where the template is told these options; `end_ids` end an answer.

        Raises PromptError for a template without tools, and for one whose format cannot be found.
        """


def call_format(model: KnownModel, options: Mapping[str, Any]) -> CallFormat:
    """How a model writes calls of tools. Raises PromptError where it calls none, and where that cannot be found."""
    if not isinstance(model.tokenizer, WritesCalls):
        raise PromptError("This model has no chat template, so it knows of no tools. Leave them out.")
    return model.tokenizer.call_format(options, model.eos_ids)


def as_json(prompt: Prompt) -> Any:
    """A prompt as JSON can say it, options included: what tells it from others."""
    if isinstance(prompt, str):
        return prompt
    opened = prompt.opened if isinstance(prompt, Chat) else None
    if (options := options_of(prompt)) or opened is not None:
        said = {} if opened is None else {"add_generation_prompt": opened}
        return {"messages": [dict(message) for message in prompt], "chat_template_kwargs": dict(options), **said}  # type: ignore
    return [dict(item) if isinstance(item, Mapping) else int(item) for item in prompt]


def guide_prompt_ids(model: Vocabulary, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
    """What a guide that is a model of its own reads: chat messages through its own template, where it has one.

    Options that are said to the base's template are said to the guide's too, where it reads them.
    """
    if is_chat(prompt) and model.tokenizer is not None and model.tokenizer.has_chat_template:
        return encode_prompt(model, with_options(prompt, options_of(prompt), required=False))
    return base_ids


def check_same_vocabulary(base: Vocabulary, guide: Vocabulary) -> None:
    """Raise VocabularyMismatchError unless both map the same tokens to the same ids (padding of the logits aside)."""
    if guide is base:
        return
    base_tokenizer, guide_tokenizer = base.tokenizer, guide.tokenizer
    if base_tokenizer is None or guide_tokenizer is None:
        if base.vocab_size != guide.vocab_size:
            raise VocabularyMismatchError(
                f"The guide has {guide.vocab_size} token ids and the base {base.vocab_size}. Without tokenizers to "
                "compare, both must have the same number. Load both with their tokenizers."
            )
        return
    if base_tokenizer.fingerprint == guide_tokenizer.fingerprint:
        return
    mine, other = dict(base_tokenizer.tokens), dict(guide_tokenizer.tokens)
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
    if items and isinstance(items[0], (Integral, Mapping)):
        return [prompts]  # type: ignore[list-item]
    return items  # type: ignore[return-value]
