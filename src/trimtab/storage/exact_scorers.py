"""Rewards that are exact functions of a text: anybody can count them again, and no model or lexicon is behind them.

They know nothing of what is said. A text that repeats one short word is plain to one of them, and a text of one word
that answers nothing is short to another; so report beside them what you would not want to lose.
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
_SENTENCE_ENDS = re.compile(r"[.!?…。！？]+(?=[\"'”’»)\]]*(?:\s|$))|[。！？]")
"""Where a sentence ends: at its marks before a space or the end of the text, closing quotes and brackets between them;
at full-width ones anywhere."""
NO_SENTENCE = -100.0
"""The reward of a text without a word for its sentences, below that of any sentence: an average counts up to 99."""
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


def short_sentences(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """Minus the average number of words in a sentence of each answer, at most 99; `NO_SENTENCE` for one without a word.

    A sentence ends at a full stop, an exclamation or a question mark, and where the text ends. A line break ends none:
    a list without full stops is one long sentence.
    """
    return [_shortness(text) for text in texts]


def _shortness(text: str) -> float:
    parts, begin = [], 0
    for end in _SENTENCE_ENDS.finditer(text):
        parts.append(text[begin : end.end()])
        begin = end.end()
    counts = [len(_WORD.findall(part)) for part in (*parts, text[begin:])]
    sentences = [count for count in counts if count]
    return -min(sum(sentences) / len(sentences), -NO_SENTENCE - 1) if sentences else NO_SENTENCE


EXACT: dict[str, tuple[Callable[[Sequence[Prompt], Sequence[str]], list[float]], str]] = {
    "short-answer": (short_answer, "minus the number of characters of the answer"),
    "plain-words": (plain_words, f"minus the share of the answer's words that have more than {LONG} letters"),
    "short-sentences": (short_sentences, "minus the average number of words in a sentence of the answer"),
}
"""Name -> the function, and what a report says of it."""
