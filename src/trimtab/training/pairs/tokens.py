"""Pairs as token ids: the prompt as decoding feeds it, the response as decoding produces it, nothing over length.

Both come from `models.conversations`, which decoding asks too. A response's last token is the one that ends a turn in
the model's chat template (for raw text, the end-of-sequence token), unless it was cut.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.errors import DataError, OptionError, PromptError, naming
from trimtab.models.tokenizing.beginning import begun_once
from trimtab.training.pairs.formats import PreferencePair

if TYPE_CHECKING:
    from trimtab.models.hf import HFTokenizer
    from trimtab.models.tokenizing.conversations import Exchange

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

    Raises OptionError for lengths that leave no room, DataError where every pair was dropped, PromptError with the
    pair's number for one that the chat template refuses or would not read whole.
    """
    if not 0 < max_prompt_length < max_length:
        raise naming(
            OptionError,
            "{max_prompt_length} {0} leaves no room for a response in {max_length} {1}. Give a number above 0 and "
            "below it.",
            *(max_prompt_length, max_length),
        )
    cutter = _Cutter(tokenizer.hf.bos_token_id, max_length, max_prompt_length)
    kept, num_ended = [], 0
    for number, pair in enumerate(pairs, 1):
        chosen, rejected = _exchanges(pair, tokenizer, eos_ids, number)
        num_ended += (chosen.num_cut > 0) + (rejected.num_cut > 0)
        fitted = cutter.fit(chosen.prompt_ids, chosen.answer_ids, rejected.answer_ids)
        if fitted.chosen_ids != fitted.rejected_ids:
            kept.append(fitted)
    if num_ended:
        log.warning(
            "%d responses hold a token that ends an answer, and lose what stands behind it: decoding would stop there",
            num_ended,
        )
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


def _exchanges(pair: PreferencePair, tokenizer: HFTokenizer, eos_ids: frozenset[int], number: int) -> list[Exchange]:
    """Prompt and responses of a pair as ids. Raises PromptError with the pair's number (from 1)."""
    try:
        return tokenizer.conversations.exchanges(pair.prompt, pair.answers, eos_ids)
    except PromptError as error:
        raise PromptError(f"Pair {number}: {error}") from None


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
            # The beginning-of-sequence token survives.
            start, following = begun_once(prompt, self._bos, [], as_written=True)
            tail = self._max_prompt_length - len(start)
            prompt = [*start, *(following[-tail:] if tail else [])]
        room = self._max_length - len(prompt)
        self.num_responses += (len(chosen) > room) + (len(rejected) > room)
        return TokenPair(tuple(prompt), tuple(chosen[:room]), tuple(rejected[:room]))
