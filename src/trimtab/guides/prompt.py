"""A sentence as a guide, without any training: the base itself, reading it.

With one sentence s, a token scores log π(y | s, x) − log π(y | x): what the sentence changes. At weight 1 the mix is
the base that reads the sentence, at 0 the base that does not; larger weights raise the sentence's influence, negative
ones steer away from it. It is context steering (He et al., ICLR 2025, arXiv 2405.01768) and classifier-free guidance of
language models (Sanchez et al., ICML 2024, arXiv 2306.17806), whose strength γ is the weight here. In context steering
the base reads the context already, so its λ is the weight less 1.

With two, a token scores log π(y | s₊, x) − log π(y | s₋, x): towards one sentence and away from the other, as with the
negative prompts of the second paper. What both sentences change alike cancels, so the base stays nearer; but at no
weight is the mix the base that reads s₊.

Where it differs from the papers' code: what reads a sentence is a row of the base's own forward pass, and with one
sentence the second term is the base's own row; weights belong to the request; the sentence stands where the chat
template has a place for it. The beginning that requests have in common is fed once (`models.forward.prefixes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trimtab.caches import num_known
from trimtab.core import Chat, GuideSession, LanguageModel, Message, ModelSession, Prompt, TokenIds, Tokenizer
from trimtab.errors import BaseMismatchError, OptionError, PromptError
from trimtab.guides.arm import ReferencedSession, ShiftSession
from trimtab.guides.sentences import AUTO, SYSTEM, USER, Sentences, cut
from trimtab.prompts import encode_prompt, is_chat, num_readable


@dataclass(frozen=True)
class PromptGuide(Sentences):
    """A guide made of a sentence, or of two: towards one, away from the other.

    `place` says where a sentence stands in a chat: `system`, at the beginning of the system message; `user`, before the
    first text of the user; `auto`, the first where the base's chat template has a system role, else the second. Before
    a prompt of raw text or token ids it stands in any case. `separator` is what stands between a sentence and the text
    that it is put before.

    Raises OptionError for a sentence that is empty, for two that are the same, and for an unknown place; `bind` raises
    it for a model that cannot read the sentences where they are to stand.

    >>> from trimtab import Decoder, PromptGuide, TabularModel
    >>> base = TabularModel.random(9, seed=0)
    >>> decoder = Decoder(base, {"fab": PromptGuide("fab", separator="")})
    >>> [steered] = decoder.generate("cd", weights={"fab": 1.0}, temperature=0, max_new_tokens=3, ignore_eos=True)
    >>> [said] = Decoder(base).generate("fabcd", temperature=0, max_new_tokens=3, ignore_eos=True)
    >>> steered.token_ids == said.token_ids  # at weight 1 one sentence is as good as said
    True
    """

    needs_hidden = False
    needs_context = False
    selection = None
    max_length = None

    @classmethod
    def reading(cls, sentences: Sentences) -> PromptGuide:
        """The guide that reads these sentences."""
        return cls(**{field.name: getattr(sentences, field.name) for field in fields(Sentences)})

    def bind(self, base: LanguageModel) -> BoundPromptGuide:
        return BoundPromptGuide(base, self, _placed(base, self))

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        return base_ids

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        raise BaseMismatchError("A sentence is read by the model that it steers. Call guide.bind(model) first.")


@dataclass(frozen=True)
class BoundPromptGuide:
    """A guide made of a sentence, and the base that reads it."""

    model: LanguageModel
    guide: PromptGuide
    place: str
    """Where the sentence stands in a chat: `system` or `user`."""

    is_policy = True
    needs_hidden = False
    needs_context = False
    selection = None

    @property
    def weight(self) -> float:
        return self.guide.weight

    @property
    def max_length(self) -> int | None:
        return self.model.max_length

    @property
    def reading(self) -> str:
        """What is read and where, for a person."""
        away = "" if self.guide.away is None else f", away from {cut(self.guide.away)!r}"
        where = "in the system message" if self.place == SYSTEM else "before the user's text"
        return f"the sentence {cut(self.guide.towards)!r}{away}, {where}"

    def facts(self) -> Mapping[str, object]:
        """The content of `guide.json`."""
        return self.guide.facts()

    def bind(self, base: LanguageModel) -> BoundPromptGuide:
        return self if base is self.model else self.guide.bind(base)

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        rows = self.readings(prompt)
        return rows[0] if len(rows) == 1 else Pairs(self.model).joined(*rows)

    def readings(self, prompt: Prompt) -> list[list[int]]:
        """The prompt's token ids with each of the sentences in it, the one that is steered towards first."""
        return [self._read(sentence, prompt) for sentence in self.guide.sentences]

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        towards = self.model.open(beside)
        if self.guide.away is None:
            return ShiftSession(towards)
        return ContrastSession(towards, self.model.open(towards if beside is None else beside), Pairs(self.model))

    def _read(self, sentence: str, prompt: Prompt) -> list[int]:
        """A prompt's token ids with the sentence in it."""
        if is_chat(prompt):
            return encode_prompt(self.model, said_in(prompt, sentence, self.place, self.guide.separator))  # type: ignore[arg-type]
        if isinstance(prompt, str):
            return encode_prompt(self.model, sentence + self.guide.separator + prompt)
        tokenizer = _tokenizer(self.model)
        begun, given = tokenizer.encode(""), encode_prompt(self.model, prompt)
        if begun and given[: len(begun)] == begun:
            given = given[len(begun) :]
        return [*tokenizer.encode(sentence + self.guide.separator), *given]


class ContrastSession(ReferencedSession):
    """The growing sequences of two sentences: the same tokens behind two prompts.

    A prompt holds both in one list of ids (`Pairs`); tokens of the answer are the base's and go to both.
    """

    def __init__(self, towards: ModelSession, away: ModelSession, pairs: Pairs) -> None:
        super().__init__(towards, away)
        self._pairs = pairs

    def admit(self, prompts: Sequence[TokenIds]) -> None:
        split = [self._pairs.apart(prompt) for prompt in prompts]
        for which, session in enumerate(self._sessions):
            session.admit([both[which] for both in split])

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        split = [self._pairs.apart([token_id]) for token_id in token_ids.tolist()]
        for which, session in enumerate(self._sessions):
            grown = [(row, both[which][0]) for row, both in zip(rows.tolist(), split, strict=True) if both[which]]
            if grown:
                session.advance(*(torch.tensor(column, dtype=torch.int64) for column in zip(*grown, strict=True)))

    def known(self, prompt: TokenIds) -> int:
        """How many of a prompt's first ids neither has to feed; the last one is fed in any case."""
        found = [len(prompt) - 1]
        for session, ids in zip(self._sessions, self._pairs.apart(prompt), strict=True):
            if (num := num_known(session, ids)) < len(ids) - 1:
                found.append(num)
        return min(found)


class Pairs:
    """Two prompts as one list of ids, so that a row of a guide can begin with both.

    Where both have the same token, the id is that token; any other stands for a pair of tokens, of which the shorter
    prompt lacks one at its end. Each id is read by itself, so a prompt may be cut anywhere, and ids of an answer, which
    are the base's, are tokens of both.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._none = max(model.vocab_size, num_readable(model))

    def joined(self, towards: Sequence[int], away: Sequence[int]) -> list[int]:
        length = max(len(towards), len(away))
        first, second = ([*ids, *[self._none] * (length - len(ids))] for ids in (towards, away))
        return [one if one == other else self._pair(one, other) for one, other in zip(first, second, strict=True)]

    def alone(self, towards: Sequence[int]) -> list[int]:
        """A prompt without another: no id of it is a token of both."""
        return [self._pair(one, self._none) for one in towards]

    def is_alone(self, token_id: int) -> bool:
        """Whether a row that begins with this id has one prompt only."""
        return self._split(int(token_id))[1] == self._none

    def apart(self, ids: TokenIds) -> tuple[list[int], list[int]]:
        both: tuple[list[int], list[int]] = ([], [])
        for token_id in ids:
            for tokens, one in zip(both, self._split(int(token_id)), strict=True):
                if one != self._none:
                    tokens.append(one)
        return both

    def _pair(self, one: int, other: int) -> int:
        return self._none + one * (self._none + 1) + other

    def _split(self, token_id: int) -> tuple[int, int]:
        return divmod(token_id - self._none, self._none + 1) if token_id >= self._none else (token_id, token_id)


def said_in(messages: Sequence[Message], sentence: str, place: str, separator: str) -> Chat:
    """Chat messages with a sentence in them, at the beginning of the system message or of the user's first text."""
    role = SYSTEM if place == SYSTEM else "user"
    chat = messages if isinstance(messages, Chat) else Chat(messages)
    first = next((index for index, message in enumerate(chat) if message.get("role") == role), None)
    said: list[Message] = list(chat)
    if first is None:
        said.insert(0, {"role": role, "content": sentence})
    else:
        said[first] = {**said[first], "content": sentence + separator + (said[first].get("content") or "")}
    return Chat(said, chat.options, required=chat.required, opened=chat.opened)


def _placed(base: LanguageModel, guide: PromptGuide) -> str:
    """Where the sentences stand in a chat with this base. Raises OptionError where they cannot be read there."""
    tokenizer = _tokenizer(base)
    for sentence in guide.sentences:
        _check_length(base, tokenizer, sentence)
    if guide.place == USER or not tokenizer.has_chat_template:
        return USER
    try:
        for sentence in guide.sentences:
            tokenizer.encode_chat([{"role": "system", "content": sentence}, {"role": "user", "content": sentence}])
    except PromptError as error:
        if guide.place == AUTO:
            return USER
        raise OptionError(
            f"The model's chat template has no system role that would say the sentence of a guide ({error}) Put it "
            f"before the user's text: place {USER!r}, or {AUTO!r}, which finds out."
        ) from None
    return SYSTEM


def _check_length(base: LanguageModel, tokenizer: Tokenizer, sentence: str) -> None:
    num_tokens = len(tokenizer.encode(sentence))
    if base.max_length is not None and num_tokens >= base.max_length - 1:
        raise OptionError(
            f"The sentence {cut(sentence)!r} has {num_tokens} tokens, and the model holds {base.max_length}, prompt "
            "and answer included. Shorten the sentence."
        )


def _tokenizer(model: LanguageModel) -> Tokenizer:
    if model.tokenizer is None:
        raise OptionError(
            "The model has no tokenizer, so it cannot read a sentence. Load it with its tokenizer, or give an ARM a "
            "prompt of token ids."
        )
    return model.tokenizer
