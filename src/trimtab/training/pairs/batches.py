"""Which pairs go through the model together, and as what rows.

Three savings, none of which changes a pair's loss: pairs of like length share a batch, so little is padding; a prompt
is run once for all responses to it in a batch (`packing`); and pairs that share a response (several rivals of one
answer) stand next to each other, so that it is run once.

The order is a pure function of the pairs, the seed and the number of pairs a step takes. A run that is resumed, or
spread over several processes, therefore sees the same pairs at the same step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trimtab.training.pairs.packing import Packed, packed
from trimtab.training.pairs.tokens import TokenPair

Length = Callable[[TokenPair], int]

_WINDOW = 16
"""Steps whose pairs are sorted by length together: more saves padding, fewer mixes better."""


def longer_length(pair: TokenPair) -> int:
    """What a pair takes of a batch in which each response has a row: the longer row's tokens."""
    return pair.length


def packed_length(pair: TokenPair) -> int:
    """What a pair takes of a batch in which the responses to a prompt share its row: all tokens, the prompt's once."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def training_order(
    pairs: Sequence[TokenPair],
    *,
    num_pairs: int,
    step_size: int,
    micro_size: int,
    seed: int,
    share_rows: bool = True,
    length: Length = longer_length,
) -> list[int]:
    """Indices of `pairs` in the order of training: at least `num_pairs`, filled up to whole steps of `step_size`.

    Passes over the data are shuffled apart; the pairs that fill the last step are the first of the next pass. Pairs of
    like `length` meet in a batch.
    """
    sizes = [length(pair) for pair in pairs]
    total = -(-num_pairs // step_size) * step_size
    stream: list[int] = []
    epoch = 0
    while len(stream) < total:
        stream += _epoch(pairs, sizes, step_size, micro_size, random.Random(f"{seed}/{epoch}"), share_rows)
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
    pairs: Sequence[TokenPair],
    sizes: Sequence[int],
    step_size: int,
    micro_size: int,
    rng: random.Random,
    share_rows: bool,
) -> list[int]:
    chunks = _chunks(pairs, micro_size, rng) if share_rows else [[i] for i in range(len(pairs))]
    rng.shuffle(chunks)
    order: list[int] = []
    window: list[list[int]] = []
    for chunk in chunks:
        window.append(chunk)
        if sum(map(len, window)) >= _WINDOW * step_size:
            whole, window = _steps(sizes, window, step_size, micro_size, rng)
            order += whole
    whole, window = _steps(sizes, window, step_size, micro_size, rng)
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
    sizes: Sequence[int], chunks: list[list[int]], step_size: int, micro_size: int, rng: random.Random
) -> tuple[list[int], list[list[int]]]:
    """A window as whole steps of batches of like length, the steps shuffled; and what is left over."""

    def length(batch: list[int]) -> int:
        return max(sizes[i] for i in batch)

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
    """Pairs -> one batch of rows, each a prompt with the distinct responses to it (`packing`).

    `chosen_rows`, `rejected_rows` [B]: which of the batch's distinct responses those of each pair are; then the fields
    of `Packed`, which `packed_of` makes of a batch again. Masks come from lengths, so no id is that of padding.
    """

    def __call__(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        numbers: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        picked: dict[str, list[int]] = {"chosen": [], "rejected": []}
        for example in examples:
            for side, index in picked.items():
                key = _predicted(example["prompt_ids"], example[f"{side}_ids"])
                index.append(numbers.setdefault(key, len(numbers)))
        groups: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
        for (prompt, response), number in numbers.items():
            groups.setdefault(prompt, []).append((number, response))
        rows = packed(list(groups.items()))
        return {
            # First, since the trainer takes the first tensor's length for the size of the batch.
            "chosen_rows": torch.tensor(picked["chosen"]),
            "rejected_rows": torch.tensor(picked["rejected"]),
            **{name: getattr(rows, name) for name in Packed.__slots__},
        }


def packed_of(batch: Mapping[str, Tensor]) -> Packed:
    """The rows of a batch of `PairCollator`."""
    return Packed(**{name: batch[name] for name in Packed.__slots__})


def _predicted(prompt: Sequence[int], response: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A prompt and the tokens that are predicted behind it: the first of all is predicted from nothing."""
    if not prompt:
        prompt, response = response[:1], response[1:]
    return tuple(prompt), tuple(response)
