"""Rewards that are exact functions of a text: anybody can count them again, and no model or lexicon is behind them.

They know nothing of what is said. A text that repeats one short word is plain to the one, and a text of one word that
answers nothing is short to the other; so report beside them what you would not want to lose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from trimtab.core import Prompt

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_LETTER = re.compile(r"[^\W\d_]")
NO_ANSWER = -10_000.0
"""The reward of a text without a word for being short: what a text of ten thousand characters gets."""
LONG = 6
"""A word of more letters is long: the L of Björnsson's readability index LIX (1968)."""
NOT_PLAIN = -1.0
"""The reward of a text without a word of letters for its words: what long words alone get."""


def short_answer(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """Minus the number of characters of each answer, white space at its ends left out; `NO_ANSWER` for one without a
    word.

    Characters and not words: a guide that was trained to say few words learnt to write long strings that are none.
    """
    return [-float(len(text.strip())) if _WORD.search(text) else NO_ANSWER for text in texts]


def plain_words(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """Minus the share of long words in each answer, from −1 to 0; `NOT_PLAIN` for one without a word of letters.

    A word is letters and digits with hyphens and apostrophes inside; only its letters count, and a number is no word.
    """
    return [_plainness(text) for text in texts]


def _plainness(text: str) -> float:
    lengths = [len(_LETTER.findall(word)) for word in _WORD.findall(text)]
    lettered = [length for length in lengths if length]
    return -sum(length > LONG for length in lettered) / len(lettered) if lettered else NOT_PLAIN


EXACT: dict[str, tuple[Callable[[Sequence[Prompt], Sequence[str]], list[float]], str]] = {
    "short-answer": (short_answer, "minus the number of characters of the answer"),
    "plain-words": (plain_words, f"minus the share of the answer's words that have more than {LONG} letters"),
}
"""Name -> the function, and what a report says of it."""
