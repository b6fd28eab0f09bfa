"""A language model small enough to enumerate: every sequence, with its probability, in a list.

For tests, for closed forms, and for trying a guide or a rule where the right answer is known. It knows nothing: its
next-token distribution is any function of the prefix, by default random numbers that a seed fixes. Its states are
random features of the prefix, unrelated to its probabilities.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from trimtab.core import Chat, Message, ModelSession, TokenIds
from trimtab.errors import OptionError, PromptError
from trimtab.models.forward.trunk import check_length
from trimtab.models.tokenizing.spelling import ByteSpelling, Spelling
from trimtab.sessions import TokenRows

Prefix: TypeAlias = tuple[int, ...]

_LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits


class LetterTokenizer:
    """One character a token. Special tokens have no text: they are written `<0>` and left out when decoding."""

    has_chat_template = True

    def __init__(self, vocab_size: int, special_ids: Collection[int] = (0,)) -> None:
        ordinary = [token_id for token_id in range(vocab_size) if token_id not in special_ids]
        if len(ordinary) > len(_LETTERS):
            raise OptionError(
                f"There are {len(ordinary)} tokens and {len(_LETTERS)} letters. Give a smaller vocabulary, or a model "
                "of bare token ids: has_tokenizer=False."
            )
        self._special_ids = frozenset(special_ids)
        self._texts = {token_id: f"<{token_id}>" for token_id in range(vocab_size)}
        self._texts.update(zip(ordinary, _LETTERS, strict=False))

    @property
    def tokens(self) -> Mapping[str, int]:
        """Every token and its id."""
        return {text: token_id for token_id, text in self._texts.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all (id, token) pairs."""
        return hashlib.sha256(repr(sorted(self._texts.items())).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """One id for each character. Raises PromptError for a character that is not a token."""
        known = self.tokens
        unknown = sorted(set(text) - set(known))
        if unknown:
            raise PromptError(f"{unknown[0]!r} is not a token of this vocabulary. Accepted: {''.join(sorted(known))}.")
        return [known[letter] for letter in text]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Contents one after the other, each ended by the first special token; an assistant's last one stays open.

        Raises PromptError for options of a template, since there is none that could read them.
        """
        if isinstance(messages, Chat) and messages.required and messages.options:
            raise PromptError(f"{next(iter(messages.options))!r} is for a chat template, and this model has none.")
        end = sorted(self._special_ids)[:1]
        token_ids = [token_id for message in messages for token_id in [*self.encode(message["content"]), *end]]
        may_go_on = not isinstance(messages, Chat) or messages.opened is None
        unfinished = may_go_on and bool(end) and bool(messages) and messages[-1]["role"] == "assistant"
        return token_ids[:-1] if unfinished else token_ids

    def decode(self, token_ids: TokenIds) -> str:
        return "".join(self._texts[token_id] for token_id in token_ids if token_id not in self._special_ids)

    def spelling(self, prompt_ids: TokenIds) -> Spelling:
        """See `spelling.Spells`."""
        return ByteSpelling(self.token_bytes, prompt_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """See `spelling.Spells`."""
        return self.decode([token_id]).encode()

    def token_text(self, token_id: int) -> str:
        return self._texts[token_id]


class TabularModel:
    """A language model whose next-token distribution is any function of the prefix.

    `logits` maps a prefix (a tuple of ids, never empty) to [V] numbers: log-probabilities up to a constant, −inf for
    never. `TabularModel.random` makes them up; `TabularModel.of_table` looks them up.

    >>> from trimtab import TabularModel
    >>> model = TabularModel.random(5, seed=0)
    >>> bool(model.next_logprobs([1, 2]).exp().sum() > 0.999)
    True
    """

    def __init__(
        self,
        logits: Callable[[Prefix], Tensor],
        vocab_size: int,
        *,
        eos_ids: Collection[int] = (0,),
        max_length: int | None = None,
        hidden_size: int = 4,
        has_tokenizer: bool = True,
    ) -> None:
        self._logits = logits
        self.vocab_size = vocab_size
        self.eos_ids = frozenset(eos_ids)
        self.max_length = max_length
        self.hidden_size = hidden_size
        self.tokenizer = LetterTokenizer(vocab_size, self.eos_ids) if has_tokenizer else None
        self.device = torch.device("cpu")

    @staticmethod
    def random(
        vocab_size: int,
        *,
        seed: int,
        order: int | None = None,
        scale: float = 1.0,
        eos_ids: Collection[int] = (0,),
        max_length: int | None = None,
    ) -> TabularModel:
        """Normal logits of standard deviation `scale`, a fixed function of the seed and the prefix's last `order` ids.

        `order` None looks at the whole prefix, 0 at none of it.
        """

        def logits(prefix: Prefix) -> Tensor:
            seen = prefix if order is None else prefix[len(prefix) - min(order, len(prefix)) :]
            return scale * _normal(vocab_size, seed, seen)

        return TabularModel(logits, vocab_size, eos_ids=eos_ids, max_length=max_length)

    @staticmethod
    def of_table(table: Tensor, *, eos_ids: Collection[int] = (0,), max_length: int | None = None) -> TabularModel:
        """Logits [V, ..., V, V] indexed by the last n tokens, n >= 0 (id 0 stands before the beginning)."""
        order = table.ndim - 1

        def logits(prefix: Prefix) -> Tensor:
            return table[((0,) * order + prefix)[len(prefix) :]]

        return TabularModel(logits, table.shape[-1], eos_ids=eos_ids, max_length=max_length)

    def next_logprobs(self, prefix: TokenIds) -> Tensor:
        """[V] float32 log-probabilities of the token after a prefix."""
        return torch.log_softmax(self._logits(tuple(prefix)).detach().to(torch.float32), dim=-1)

    def state(self, prefix: TokenIds) -> Tensor:
        """[D] float32: the state after a prefix."""
        return _normal(self.hidden_size, -1, tuple(prefix))

    def answers(self, prompt: TokenIds, max_new_tokens: int) -> dict[Prefix, float]:
        """Every possible answer to a prompt and its log-probability: those that end in an end-of-sequence id, and those
        cut at `max_new_tokens`. Their probabilities sum to 1. There may be V^max_new_tokens of them.
        """
        return dict(self._continuations(tuple(prompt), (), 0.0, max_new_tokens))

    def _continuations(
        self, prompt: Prefix, answer: Prefix, logprob: float, room: int
    ) -> Iterator[tuple[Prefix, float]]:
        if room == 0 or (answer and answer[-1] in self.eos_ids):
            yield answer, logprob
            return
        for token_id, step in enumerate(self.next_logprobs(prompt + answer).tolist()):
            if step > -torch.inf:
                yield from self._continuations(prompt, (*answer, token_id), logprob + step, room - 1)

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        return TabularSession(self)


class TabularSession(TokenRows):
    """Growing sequences, and nothing remembered about them but their tokens."""

    def __init__(self, model: TabularModel) -> None:
        super().__init__()
        self._model = model

    def logprobs_after(self, rows: Tensor, drafted: Tensor) -> Tensor:
        """[N, V] float32, after so many [N] of the drafted tokens."""
        return self._logprobs(self._some(rows, drafted))

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        """[N, V] float32."""
        return self._logprobs(self._some(rows))

    def _check(self, token_ids: TokenIds) -> None:
        check_length(token_ids, self._model.max_length)

    def _logprobs(self, prefixes: Sequence[Prefix]) -> Tensor:
        known = {prefix: self._model.next_logprobs(prefix) for prefix in set(prefixes)}
        return _stack([known[prefix] for prefix in prefixes], self._model.vocab_size)

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """[N, K] -> [N, K, D]."""
        prefixes = self._some(rows)
        states = [
            self._model.state((*prefix, token))
            for prefix, row in zip(prefixes, token_ids.tolist(), strict=True)
            for token in row
        ]
        return _stack(states, self._model.hidden_size).view(*token_ids.shape, self._model.hidden_size)

    def context(self, rows: Tensor | None = None) -> Tensor:
        """[N, D]."""
        return self._states(self._some(rows))

    def context_after(self, rows: Tensor, drafted: Tensor) -> Tensor:
        """[N, D], after so many [N] of the drafted tokens."""
        return self._states(self._some(rows, drafted))

    def _states(self, prefixes: Sequence[Prefix]) -> Tensor:
        return _stack([self._model.state(prefix) for prefix in prefixes], self._model.hidden_size)


def _stack(rows: Sequence[Tensor], width: int) -> Tensor:
    return torch.stack(list(rows)) if rows else torch.empty(0, width)


def _normal(size: int, seed: int, prefix: Prefix) -> Tensor:
    """[size] standard normal numbers, the same for the same seed and prefix on every machine."""
    digest = hashlib.blake2b(repr((seed, prefix)).encode(), digest_size=7).digest()
    return torch.randn(size, generator=torch.Generator().manual_seed(int.from_bytes(digest, "big")))
