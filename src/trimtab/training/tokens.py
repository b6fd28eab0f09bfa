"""Pairs as token ids: the prompt exactly as decoding will see it, the response with its end, nothing over length.

The response's own text is tokenised apart from the prompt, since that is what a model emits token by token; its last
token is the one that ends a turn in the model's chat template (for raw text, the tokenizer's end-of-sequence token).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.errors import CheckpointError, DataError, OptionError, naming
from trimtab.training.formats import PreferencePair

if TYPE_CHECKING:
    from trimtab.models.hf import HFTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A pair as ids. A response ends with its end token unless it was cut."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True, slots=True)
class TokenData:
    """Pairs as ids, and what had to be cut to fit."""

    pairs: tuple[TokenPair, ...]
    num_prompts_cut: int
    """Prompts that lost their beginning."""
    num_responses_cut: int
    """Responses that lost their end."""
    num_dropped: int
    """Pairs whose two responses became the same when cut; they teach nothing."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, prompts counted for each response."""
        return sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in self.pairs)

    @property
    def counts(self) -> dict[str, int]:
        """What a guide's card says of the tokens: how many, and how many pairs were cut or dropped."""
        return {
            "num_tokens": self.num_tokens,
            "num_prompts_cut": self.num_prompts_cut,
            "num_responses_cut": self.num_responses_cut,
            "num_dropped": self.num_dropped,
        }


def tokenise(
    pairs: Sequence[PreferencePair],
    tokenizer: HFTokenizer,
    *,
    eos_ids: frozenset[int],
    max_length: int,
    max_prompt_length: int,
) -> TokenData:
    """Every pair as ids of at most `max_length` tokens: prompts cut from the left, responses from the right.

    Raises OptionError for lengths that leave no room, DataError where every pair was dropped.
    """
    if not 0 < max_prompt_length < max_length:
        raise naming(
            OptionError,
            "{max_prompt_length} {0} leaves no room for a response in {max_length} {1}. Give a number above 0 and "
            "below it.",
            *(max_prompt_length, max_length),
        )
    ends = _Ends(tokenizer, eos_ids)
    cutter = _Cutter(_habitual_bos(tokenizer), max_length, max_prompt_length)
    prompts: dict[object, list[int]] = {}
    kept = []
    for pair in pairs:
        key = pair.prompt if isinstance(pair.prompt, str) else tuple(map(tuple, (m.items() for m in pair.prompt)))
        if key not in prompts:
            prompts[key] = _prompt_ids(pair, tokenizer)
        end = ends.text if isinstance(pair.prompt, str) else ends.turn
        chosen, rejected = ([*_plain_ids(tokenizer, text), end] for text in (pair.chosen, pair.rejected))
        fitted = cutter.fit(prompts[key], chosen, rejected)
        if fitted.chosen_ids != fitted.rejected_ids:
            kept.append(fitted)
    if not kept:
        raise naming(
            DataError,
            "In {max_length} {0} the two responses of every pair became the same. Give a larger {max_length}.",
            max_length,
        )
    data = TokenData(tuple(kept), cutter.num_prompts, cutter.num_responses, len(pairs) - len(kept))
    if data.num_prompts_cut or data.num_responses_cut or data.num_dropped:
        log.warning(
            "%d pairs: %d prompts cut from the left to %d tokens, %d responses from the right to %d in all, %d dropped",
            *(
                len(pairs),
                data.num_prompts_cut,
                max_prompt_length,
                data.num_responses_cut,
                max_length,
                data.num_dropped,
            ),
        )
    return data


class _Cutter:
    """Cuts to length and counts what it cut."""

    def __init__(self, bos: int | None, max_length: int, max_prompt_length: int) -> None:
        self._bos = bos
        self._max_length = max_length
        self._max_prompt_length = max_prompt_length
        self.num_prompts = 0
        self.num_responses = 0

    def fit(self, prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> TokenPair:
        if len(prompt) > self._max_prompt_length:
            self.num_prompts += 1
            # The beginning-of-sequence token survives where the vocabulary has the habit.
            start = [self._bos] if self._bos is not None and prompt[0] == self._bos else []
            tail = self._max_prompt_length - len(start)
            prompt = [*start, *(prompt[-tail:] if tail else [])]
        room = self._max_length - len(prompt)
        self.num_responses += (len(chosen) > room) + (len(rejected) > room)
        return TokenPair(tuple(prompt), tuple(chosen[:room]), tuple(rejected[:room]))


class _Ends:
    """The token that ends a response, after a chat template (`turn`) and after raw text (`text`)."""

    def __init__(self, tokenizer: HFTokenizer, eos_ids: frozenset[int]) -> None:
        known = tokenizer.hf.eos_token_id
        if known is None and not eos_ids:
            raise CheckpointError(
                "Neither the tokenizer nor the model names an end-of-sequence token, so a response cannot end. "
                "Set eos_token in the tokenizer's configuration."
            )
        self.text = int(known) if known is not None else min(eos_ids)
        self.turn = _turn_end(tokenizer, eos_ids, default=self.text) if tokenizer.has_chat_template else self.text


def _turn_end(tokenizer: HFTokenizer, eos_ids: frozenset[int], *, default: int) -> int:
    """The first end-of-sequence id that the chat template writes after an assistant's message."""
    question = [{"role": "user", "content": "a"}]
    text = tokenizer.hf.apply_chat_template([*question, {"role": "assistant", "content": "b"}], tokenize=False)
    before = len(tokenizer.encode_chat(question))
    after = _plain_ids(tokenizer, text)[before:]
    return next((token_id for token_id in after if token_id in eos_ids), default)


def _prompt_ids(pair: PreferencePair, tokenizer: HFTokenizer) -> list[int]:
    if not isinstance(pair.prompt, str):
        return tokenizer.encode_chat(pair.prompt)
    token_ids = tokenizer.encode(pair.prompt)
    eos = tokenizer.hf.eos_token_id
    return token_ids[:-1] if eos is not None and len(token_ids) > 1 and token_ids[-1] == eos else token_ids


def _plain_ids(tokenizer: HFTokenizer, text: str) -> list[int]:
    return [int(token_id) for token_id in tokenizer.hf(text, add_special_tokens=False)["input_ids"]]


def _habitual_bos(tokenizer: HFTokenizer) -> int | None:
    """The BOS id where the tokenizer puts it before raw text."""
    bos = tokenizer.hf.bos_token_id
    return int(bos) if bos is not None and tokenizer.encode("a")[:1] == [bos] else None
