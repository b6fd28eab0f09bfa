"""Answers that say nothing of their prompt: nearly equal to another one, or given to many prompts.

Two answers are as alike as the share of runs of four letters that they have in common (Jaccard's index of the two
sets). Letters are compared without case, and any run of spaces is one space. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_RUN = 4


def plain(text: str) -> str:
    """A text as it is compared: without case, with single spaces."""
    return " ".join(text.casefold().split())


def similarity(one: str, another: str) -> float:
    """From 0 (no run of four letters in common) to 1 (the same runs)."""
    left, right = _runs(plain(one)), _runs(plain(another))
    return len(left & right) / len(left | right)


def _runs(text: str) -> frozenset[str]:
    """The runs of four letters; a shorter text is its own only one."""
    return frozenset(text[start : start + _RUN] for start in range(max(1, len(text) - _RUN + 1)))


def repeated(groups: Sequence[Sequence[str]], most: float) -> set[tuple[int, int]]:
    """(group, place) of the answers to a prompt to be left out, because another one is equal or more alike than `most`.

    Of several in one group the first stays. What two groups (two sentences) gave alike is left out of both: it is
    neither's. Empty answers are nobody's likeness.
    """
    out: set[tuple[int, int]] = set()
    runs = {
        (group, place): (plain(text), _runs(plain(text)))
        for group, texts in enumerate(groups)
        for place, text in enumerate(texts)
        if text
    }
    for later, (text, mine) in runs.items():
        for earlier, (other, others) in runs.items():
            if earlier == later:
                break
            if earlier in out and earlier[0] == later[0]:
                continue
            if text == other or len(mine & others) > most * len(mine | others):
                out |= {later} if earlier[0] == later[0] else {earlier, later}
    return out


def stock(answers: Mapping[str, Sequence[str]], most: int) -> set[str]:
    """The texts, as `plain` has them, that answer more than `most` prompts (0: none); `answers` are each prompt's."""
    if not most:
        return set()
    num_prompts: dict[str, int] = {}
    for texts in answers.values():
        for text in {plain(text) for text in texts if text}:
            num_prompts[text] = num_prompts.get(text, 0) + 1
    return {text for text, num in num_prompts.items() if num > most}
