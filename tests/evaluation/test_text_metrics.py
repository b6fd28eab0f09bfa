"""Repetition and diversity against counts by hand; coherence against cosines by hand and against common sense."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.errors import OptionError, PromptError
from trimtab.evaluation.comparison.text_metrics import coherence, diversity, repetition


@pytest.mark.parametrize(
    ("token_ids", "n", "expected"),
    [
        ([1, 2, 3, 4], 2, 100 * (1 - 3 / 4)),  # three pairs, all different
        ([1, 2, 1, 2, 1], 2, 100 * (1 - 2 / 5)),  # 12 21 12 21
        ([7, 7, 7, 7, 7], 3, 100 * (1 - 1 / 4)),
        ([7, 7], 3, 0.0),
        ([], 1, 0.0),
    ],
)
def test_repetition_counts_n_grams(token_ids: list[int], n: int, expected: float) -> None:
    assert repetition(token_ids, n) == pytest.approx(expected)


def test_diversity_is_the_product_over_two_to_four() -> None:
    token_ids = [1, 2, 3, 1, 2, 3, 4]
    # pairs 12 23 31 12 23 34: 4 of 6; triples 123 231 312 123 234: 4 of 5; fours 1231 2312 3123 1234: 4 of 4
    assert diversity(token_ids) == pytest.approx((4 / 7) * (4 / 6) * (4 / 5))
    assert diversity([5] * 40) < 0.001 < diversity(range(40))


def test_zero_grams_are_refused() -> None:
    with pytest.raises(OptionError, match="n is 0"):
        repetition([1], 0)


def test_coherence_is_the_cosine_of_prompt_and_answer() -> None:
    table = {"a": [1.0, 0.0], "b": [0.0, 2.0], "a b": [3.0, 3.0], "": [0.0, 0.0]}

    def embed(texts):  # type: ignore[no-untyped-def]
        return np.array([table[text.replace("\n", " ")] for text in texts], dtype=np.float32)

    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    found = coherence(["a", "a", messages, "a"], ["a b", "b", "a", ""], embed=embed)
    assert found == pytest.approx([np.sqrt(0.5), 0.0, np.sqrt(0.5), 0.0])


def test_what_belongs_together_is_more_coherent() -> None:
    pytest.importorskip("wordllama")
    prompt = "How do I bake bread?"
    on_topic, off_topic, nothing = coherence(
        [prompt] * 3, ["Mix flour and water, then put the loaf in the oven.", "The stock market fell today.", " "]
    )
    assert on_topic > off_topic + 0.3
    assert nothing == 0.0


def test_prompts_and_texts_must_match() -> None:
    with pytest.raises(PromptError, match="1 prompts and 2 answers"):
        coherence(["a"], ["b", "c"])
    with pytest.raises(PromptError, match="token ids"):
        coherence([[1, 2]], ["b"], embed=lambda texts: np.ones((len(texts), 1), dtype=np.float32))
