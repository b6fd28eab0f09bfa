"""The nouns of trimtab and the laws they keep.

Three nouns meet in one loop: a **model** proposes, **guides** score, a **rule** decides. Weights are shared and
never change; everything that changes lives in a **session** with three verbs, `admit`, `advance` and `keep`.

Shapes: B rows, K candidates, V vocabulary, D hidden size. Log-probabilities are natural and float32; −inf means
*never*.

The laws (`trimtab.testing` checks them on any model or guide):

* reading is pure: `logprobs`, `peek` and `score` change nothing observable;
* a row's numbers do not depend on its company (float32);
* `admit(p + t)` equals `admit(p)` then `advance(t)`;
* `keep(rows)` is indexing: repeats fork, absence frees;
* reading some rows is indexing the reading of all, whichever rows of the base they continue;
* scoring a subset of the candidates equals gathering from the scores of all of them;
* what is remembered (caches) changes no number;
* weight 0 gives the base bit for bit, even where a guide says −inf;
* a token the base forbids stays forbidden at any weight; one that a guide of non-zero weight forbids does too;
* a constant added to a row of a guide's scores changes nothing;
* a seeded request gives the same tokens alone and in any company;
* the text of an answer is what its tokens add to the decoded prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from trimtab.params import SamplingParams as SamplingParams

TokenIds: TypeAlias = Sequence[int]
Message: TypeAlias = Mapping[str, Any]
"""A chat message: `{"role": "user", "content": "..."}`, and what else the model's chat template reads of one."""


class Chat(tuple[Message, ...]):
    """Chat messages, and what the chat template is told besides them: `tools`, `enable_thinking`, ...

    It is a tuple of its messages, so whatever takes chat messages takes it. `required` says what happens to an option
    that a template does not read: it is refused (True), or left out (False), as for the template of a guide, which is
    told what the request says to the base's. `opened` says how the messages end: True with a fresh turn of the
    assistant's, False as they stand, None with a fresh turn unless an assistant's message is last, which is continued.

    >>> from trimtab import Chat
    >>> chat = Chat([{"role": "user", "content": "Why?"}], {"enable_thinking": False})
    >>> len(chat), chat.options["enable_thinking"]
    (1, False)
    """

    options: Mapping[str, Any]
    required: bool
    opened: bool | None

    def __new__(
        cls,
        messages: Sequence[Message],
        options: Mapping[str, Any] | None = None,
        *,
        required: bool = True,
        opened: bool | None = None,
    ) -> Chat:
        chat = super().__new__(cls, messages)
        chat.options = dict(options or {})
        chat.required = required
        chat.opened = opened
        return chat

    def __reduce__(self) -> tuple[Any, ...]:
        return _chat, (tuple(self), self.options, self.required, self.opened)

    def __eq__(self, other: object) -> bool:
        """Equal messages, options and ends; plain messages say nothing of the latter two."""
        if not isinstance(other, tuple):
            return NotImplemented
        said = (other.options, other.opened) if isinstance(other, Chat) else ({}, None)
        return tuple(self) == tuple(other) and (self.options, self.opened) == said

    def __ne__(self, other: object) -> bool:
        return NotImplemented if not isinstance(other, tuple) else not self == other

    __hash__ = tuple.__hash__


def _chat(messages: Sequence[Message], options: Mapping[str, Any], required: bool, opened: bool | None) -> Chat:
    return Chat(messages, options, required=required, opened=opened)


Prompt: TypeAlias = str | TokenIds | Sequence[Message]
"""Raw text, token ids, or chat messages (put through the model's template; a `Chat` says how)."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The next tokens under consideration.

    `complete` says that the candidates are the whole vocabulary in id order, so a guide that has a [B, V] table of
    scores may return it as it is; otherwise candidates come best first by the base.
    """

    token_ids: Tensor
    """[B, K] int64."""
    logprobs: Tensor
    """[B, K] base policy at temperature 1, not renormalised over the candidates."""
    hidden: Tensor | None = None
    """[B, K, D] base state AFTER each candidate, if a guide asks for it."""
    context: Tensor | None = None
    """[B, D] base state BEFORE the candidate, if a guide asks for it."""
    complete: bool = False
    rows: Tensor | None = None
    """[B] int64: which rows of the guide's session these are, in any order, each at most once; None: all of them, in
    order. Only guides that select are asked about some rows."""
    base_rows: Tensor | None = None
    """[B] int64: which rows of the base's session they continue; given to guides that select."""
    drafted: Tensor | None = None
    """[B] int64: after how many of its row's drafted tokens each comes; then `rows` is given, and names a row once for
    each such number. None: after all of them. Only sessions that draft are given it (`drafting.Drafting`)."""

    def gather(self, table: Tensor) -> Tensor:
        """The entries of a [B, V] table at the candidates: [B, K]."""
        return table if self.complete else table.gather(1, self.token_ids)

    def select(self, rows: Tensor) -> Candidates:
        """The candidates of some of these rows; `rows` is [B'] int64. What says whose they are is picked with them."""
        return Candidates(
            self.token_ids[rows],
            self.logprobs[rows],
            None if self.hidden is None else self.hidden[rows],
            None if self.context is None else self.context[rows],
            self.complete,
            None if self.rows is None else self.rows[rows],
            None if self.base_rows is None else self.base_rows[rows],
            None if self.drafted is None else self.drafted[rows],
        )


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back; its `fingerprint` identifies the vocabulary by content."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def tokens(self) -> Mapping[str, int]:
        """Every known token and its id."""

    @property
    def has_chat_template(self) -> bool: ...
    def encode(self, text: str) -> list[int]:
        """Raw text to ids that an answer continues: one beginning-of-sequence token where the vocabulary has the habit,
        and nothing that ends a sequence."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Chat messages to ids through the model's template, ready for an answer; exactly one BOS.

        The options of a `Chat` go to the template. Raises PromptError for what the template refuses or cannot read.
        """

    def decode(self, token_ids: TokenIds) -> str:
        """Ids to text, special tokens left out."""

    def token_text(self, token_id: int) -> str:
        """One token as it should be shown to a person, special tokens included."""


class Session(Protocol):
    """A batch of growing sequences and what is remembered about them. Rows are numbered 0..num_rows-1."""

    @property
    def num_rows(self) -> int: ...
    def admit(self, prompts: Sequence[TokenIds]) -> None:
        """Append one row for each prompt (non-empty lists of token ids)."""

    def advance(self, rows: Tensor, token_ids: Tensor) -> None:
        """Append one token to each named row: `rows` and `token_ids` are [N] int64, rows distinct."""

    def keep(self, rows: Tensor) -> None:
        """New row i is old `rows[i]`: repeats fork a row, absence frees it."""


class ModelSession(Session, Protocol):
    """A session of a language model."""

    def logprobs(self, rows: Tensor | None = None) -> Tensor:
        """[N, V] float32: normalised log-probabilities of the next token, of some rows [N] (in any order, with repeats,
        or none), or (None) of all, [B, V]."""

    def peek(self, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """[N, K] candidates -> [N, K, D]: the state after feeding each candidate; changes nothing observable.

        `rows` [N] says which rows they continue, in any order, each at most once, or none; None: all, in order.
        """

    def context(self, rows: Tensor | None = None) -> Tensor:
        """[N, D]: the state that the next token is predicted from; `rows` as in `logprobs`."""


class GuideSession(Session, Protocol):
    """A session of a guide."""

    def score(self, candidates: Candidates) -> Tensor:
        """[B, K] float32 scores in log space; changes nothing observable."""


@runtime_checkable
class KnownModel(Protocol):
    """What a model is, wherever it runs: a model inside another engine has this much and no sessions."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None for a model of bare token ids."""

    @property
    def vocab_size(self) -> int:
        """V, the width of `logprobs` (ids that no token has are −inf)."""

    @property
    def hidden_size(self) -> int:
        """D, the width of the states that `peek` and `context` give."""

    @property
    def eos_ids(self) -> frozenset[int]: ...
    @property
    def max_length(self) -> int | None:
        """The longest sequence it can hold, prompt included; None: no limit."""

    @property
    def device(self) -> torch.device:
        """Where its numbers live."""


@runtime_checkable
class LanguageModel(KnownModel, Protocol):
    """Something that predicts the next token. Frozen: nothing in trimtab writes to it."""

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        """A new, empty session. With `beside`, the two may share forward passes; numbers do not change."""


@runtime_checkable
class Guide(Protocol):
    """Something that scores candidates."""

    @property
    def weight(self) -> float:
        """The strength at which it runs when a request does not say."""

    @property
    def needs_hidden(self) -> bool:
        """Whether `score` reads `Candidates.hidden`."""

    @property
    def needs_context(self) -> bool:
        """Whether `score` reads `Candidates.context`."""

    @property
    def max_length(self) -> int | None:
        """The longest sequence it can hold, prompt included; None: no limit."""

    @property
    def selection(self) -> Selection | None:
        """None: the guide tilts, so its weighted scores are added to the others'. Else it selects: its rule decides
        among a few candidates, after all tilts. A request runs at most one guide that selects."""

    def bind(self, base: LanguageModel) -> Guide:
        """The guide made ready to steer `base` (itself, if it already is).

        Raises VocabularyMismatchError or BaseMismatchError where the two do not belong together.
        """

    def prompt_ids(self, prompt: Prompt, base_ids: TokenIds) -> TokenIds:
        """What a row of the guide starts from: `base_ids` unless the guide reads a prompt or template of its own. The
        base's ids of the answer follow, in `advance` and in `admit`: a guide of another vocabulary translates both."""

    def open(self, beside: ModelSession | None = None) -> GuideSession:
        """A new, empty session; `beside` is the base's session, whose forward pass a guide may share."""


class Rule(Protocol):
    """Turns base log-probabilities and mixed scores into the policy that is sampled from."""

    def policy(self, candidates: Candidates, scores: Tensor) -> Tensor:
        """[B, K] log-probabilities from [B, K] weighted scores; not a sample."""


class SelectingRule(Rule, Protocol):
    """A rule that picks among candidates; what it weighs is one guide's scores."""

    @property
    def lazy(self) -> bool:
        """Whether the first candidate with a weighted score above 0 decides, so that later ones need no look."""

    @property
    def accepts(self) -> bool:
        """Whether a weighted score above 0 is acceptance; else scores are weighed against the base's."""

    def check_weight(self, weight: float) -> None:
        """Raise OptionError for a weight that means nothing to this rule."""

    def weigh(self, scores: Tensor, weights: Tensor) -> Tensor:
        """[B, K] scores and [B, 1] non-zero weights -> the weighted scores [B, K] that `policy` reads."""


@dataclass(frozen=True, slots=True)
class Selection:
    """How a guide that selects does so: its rule, and the candidates that it is asked about.

    Candidates are the tilted policy's top-k, of these the top-p (both at temperature 1), best first. A single survivor
    is not asked about. The three numbers hold where a request does not say; theirs are MARA's (arXiv 2505.19743).
    """

    rule: SelectingRule
    temperature: float = 0.8
    """The temperature of the rule's policy, and of the candidates' probabilities in training."""
    top_k: int = 40
    top_p: float = 0.95
    looks: tuple[int, ...] | None = None
    """Candidates of a row in successive passes; the last number repeats; (): all at once. None: all at once where the
    rule needs every verdict; where it is lazy, as many as pay, by what passes take and how often one was accepted
    lately. No answer depends on it."""

    def width(self, look: int) -> int | None:
        """Candidates of a row in a pass, numbered from 0, where `looks` are given; None: all that are left."""
        return self.looks[min(look, len(self.looks) - 1)] if self.looks else None
