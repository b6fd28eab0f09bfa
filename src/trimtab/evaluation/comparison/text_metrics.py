"""How answers read, in numbers: repetition, diversity and coherence, as ARGS measures them (arXiv 2402.01694).

What they do not know: meaning. Repetition counts n-grams of token ids, so it depends on the tokenizer; an answer
shorter than n tokens repeats nothing. Coherence is a cosine of embeddings, and its level depends on what embeds:
compare figures of one embedding only. ARGS embeds with SimCSE; here it is WordLlama (a text is the mean of its tokens'
256 numbers), whose weights come with the package, so that it runs offline and on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.core import Prompt, TokenIds
from trimtab.errors import MissingExtraError, OptionError, PromptError

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""N texts -> [N, D]."""

COHERENCE = "cosine of WordLlama's embeddings (l2_supercat, 256 numbers) of prompt and answer"
"""What `coherence` is, in words for a report."""


def repetition(token_ids: TokenIds, n: int) -> float:
    """rep-n in percent: 100 · (1 − unique / (total + 1)) over the n-grams of an answer.

    The 1 is theirs: an answer in which nothing repeats still has 100 / (total + 1). An answer of fewer than n tokens
    has no n-gram and gives 0 here, where the formula would give 100.
    """
    if n < 1:
        raise OptionError(f"n is {n}; give a whole number of at least 1.")
    grams = [tuple(token_ids[start : start + n]) for start in range(len(token_ids) - n + 1)]
    return 100 * (1 - len(set(grams)) / (len(grams) + 1)) if grams else 0.0


def diversity(token_ids: TokenIds) -> float:
    """∏ (1 − rep-n / 100) for n = 2, 3, 4: near 1 where nothing is said twice, 0 never quite reached."""
    return float(np.prod([1 - repetition(token_ids, n) / 100 for n in (2, 3, 4)]))


def coherence(prompts: Sequence[Prompt], texts: Sequence[str], *, embed: Embed | None = None) -> list[float]:
    """The cosine, from −1 to 1, of the embeddings of each prompt and its answer; 0 where one of them has no words.

    A conversation's messages are joined by line breaks. `embed` is WordLlama unless given. Raises PromptError for
    prompts of token ids or another number of texts, MissingExtraError where WordLlama is not installed.
    """
    if len(prompts) != len(texts):
        raise PromptError(f"There are {len(prompts)} prompts and {len(texts)} answers; give one of each.")
    if not texts:
        return []
    embed = embed or word_llama()
    before, after = embed([prompt_text(prompt) for prompt in prompts]), embed(list(texts))
    sizes = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    products = np.sum(before * after, axis=1)
    return [float(product / size) if size > 0 else 0.0 for product, size in zip(products, sizes, strict=True)]


def prompt_text(prompt: Prompt) -> str:
    """A prompt as a reader sees it: the text, or the contents of the messages. Raises PromptError for token ids."""
    if isinstance(prompt, str):
        return prompt
    contents = [message["content"] for message in prompt if not isinstance(message, int)]
    if len(contents) != len(prompt):
        raise PromptError("The prompt is token ids, which have no words here. Give text or chat messages.")
    return "\n".join(contents)


def word_llama() -> Embed:
    """WordLlama's embeddings, read from the installed package; nothing is downloaded."""
    try:
        import wordllama
    except ImportError as error:
        raise MissingExtraError("wordllama", "compare", "Coherence") from error
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        # It refuses an empty batch, and an empty text gives zero over zero: such texts have no embedding.
        table: NDArray[np.float32] = np.zeros((len(texts), 256), dtype=np.float32)
        filled = [row for row, text in enumerate(texts) if text.strip()]
        if filled:
            table[filled] = model.embed([texts[row] for row in filled], norm=False)
        return table

    return embed
