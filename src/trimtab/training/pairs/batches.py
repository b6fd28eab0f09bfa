"""Which pairs go through the model together, and as what rows.

Two savings, neither of which changes a pair's loss: pairs of like length share a batch, so little is padding; and
pairs that share a response (several rivals of one answer) stand next to each other, so that its row is run once.

The order is a pure function of the pairs, the seed and the number of pairs a step takes. A run that is resumed, or
spread over several processes, therefore sees the same pairs at the same step.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trimtab.training.pairs.tokens import TokenPair

_WINDOW = 16
"""Steps whose pairs are sorted by length together: more saves padding, fewer mixes better."""


def training_order(
    pairs: Sequence[TokenPair], *, num_pairs: int, step_size: int, micro_size: int, seed: int, share_rows: bool = True
) -> list[int]:
    """Indices of `pairs` in the order of training: at least `num_pairs`, filled up to whole steps of `step_size`.

    Passes over the data are shuffled apart; the pairs that fill the last step are the first of the next pass.
    """
    total = -(-num_pairs // step_size) * step_size
    stream: list[int] = []
    epoch = 0
    while len(stream) < total:
        stream += _epoch(pairs, step_size, micro_size, random.Random(f"{seed}/{epoch}"), share_rows)
        epoch += 1
    return stream[:total]


def evaluation_order(pairs: Sequence[TokenPair]) -> list[int]:
    """Indices with pairs of one response together, the longest first (what does not fit fails at once)."""
    groups = _groups(pairs)
    groups.sort(key=lambda group: max(pairs[i].length for i in group), reverse=True)
    return [i for group in groups for i in group]


def prompts_in_order(pairs: Sequence[TokenPair]) -> list[tuple[int, ...]]:
    """The prompt of each pair, in `evaluation_order`."""
    return [tuple(pairs[index].prompt_ids) for index in evaluation_order(pairs)]


def _epoch(
    pairs: Sequence[TokenPair], step_size: int, micro_size: int, rng: random.Random, share_rows: bool
) -> list[int]:
    chunks = _chunks(pairs, micro_size, rng) if share_rows else [[i] for i in range(len(pairs))]
    rng.shuffle(chunks)
    order: list[int] = []
    window: list[list[int]] = []
    for chunk in chunks:
        window.append(chunk)
        if sum(map(len, window)) >= _WINDOW * step_size:
            whole, window = _steps(pairs, window, step_size, micro_size, rng)
            order += whole
    whole, window = _steps(pairs, window, step_size, micro_size, rng)
    return [*order, *whole, *(i for chunk in window for i in chunk)]


def _chunks(pairs: Sequence[TokenPair], size: int, rng: random.Random) -> list[list[int]]:
    """Pairs of one response, shuffled, cut to `size`."""
    chunks = []
    for group in _groups(pairs):
        rng.shuffle(group)
        chunks += [group[start : start + size] for start in range(0, len(group), size)]
    return chunks


def _groups(pairs: Sequence[TokenPair]) -> list[list[int]]:
    """Indices of the pairs that share prompt and preferred response."""
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault((pair.prompt_ids, pair.chosen_ids), []).append(index)
    return list(groups.values())


def _steps(
    pairs: Sequence[TokenPair], chunks: list[list[int]], step_size: int, micro_size: int, rng: random.Random
) -> tuple[list[int], list[list[int]]]:
    """A window as whole steps of batches of like length, the steps shuffled; and what is left over."""

    def length(batch: list[int]) -> int:
        return max(pairs[i].length for i in batch)

    loose = [i for chunk in sorted(chunks, key=length) if len(chunk) < micro_size for i in chunk]
    whole = len(loose) // micro_size * micro_size
    batches = [chunk for chunk in chunks if len(chunk) == micro_size]
    batches += [loose[start : start + micro_size] for start in range(0, whole, micro_size)]
    batches.sort(key=length)
    size = step_size // micro_size
    steps = [batches[start : start + size] for start in range(0, len(batches) // size * size, size)]
    rest = [*batches[len(steps) * size :], *([loose[whole:]] if loose[whole:] else [])]
    rng.shuffle(steps)
    return [i for step in steps for batch in step for i in batch], rest


class PairCollator:
    """Pairs -> one right-padded batch of distinct rows.

    B pairs, R distinct rows, L tokens. `chosen_rows`, `rejected_rows` [B]: the row of each pair's responses;
    `input_ids`, `attention_mask` [R, L]; `response_mask` [R, L] bool: True at a response's tokens. Masks come from
    lengths, so the pad id may be any token.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        picked: dict[str, list[int]] = {"chosen": [], "rejected": []}
        for example in examples:
            for side, index in picked.items():
                key = tuple(example["prompt_ids"]), tuple(example[f"{side}_ids"])
                index.append(rows.setdefault(key, len(rows)))
        length = max(len(prompt) + len(response) for prompt, response in rows)
        input_ids = torch.full((len(rows), length), self._pad_id)
        lengths = torch.tensor([[len(prompt), len(prompt) + len(response)] for prompt, response in rows])
        for (prompt, response), row in rows.items():
            input_ids[row, : lengths[row, 1]] = torch.tensor([*prompt, *response])
        positions = torch.arange(length)
        attended = positions < lengths[:, 1:]
        return {
            # First, since the trainer takes the first tensor's length for the size of the batch.
            "chosen_rows": torch.tensor(picked["chosen"]),
            "rejected_rows": torch.tensor(picked["rejected"]),
            "input_ids": input_ids,
            "attention_mask": attended.long(),
            "response_mask": attended & (positions >= lengths[:, :1]),
        }
