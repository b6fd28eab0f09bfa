"""Answers to one prompt in one row, so that the prompt is run once and not once an answer.

A row is the prompt but for its last token, then for each answer the prompt's last token again and the answer's tokens.
Positions count from the prompt's beginning in each answer, and an answer sees the prompt and itself, so every number is
what it would be in a row of its own; the output head runs where an answer's token is predicted and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.models.forward.row_cache import Reach

PADDING = -1
"""The segment of what fills up a row."""

Answers = tuple[Sequence[int], Sequence[tuple[int, Sequence[int]]]]
"""A prompt's ids, at least one, and the answers to it: each one's number in the batch and its ids."""


@dataclass(frozen=True, slots=True)
class Packed:
    """G rows of at most L tokens, and where the M tokens of the answers stand in them, in the order of the rows."""

    input_ids: Tensor
    """[G, L] int64."""
    positions: Tensor
    """[G, L] int64."""
    segments: Tensor
    """[G, L] int64: 0 for a prompt's tokens, n for those of the row's n-th answer, `PADDING` for what fills it up."""
    predicting: Tensor
    """[G, L] bool, M of them True: the tokens that an answer's token is predicted from."""
    token_ids: Tensor
    """[M] int64: the tokens that are predicted."""
    rows: Tensor
    """[M] int64: whose answer each of them belongs to, and ..."""
    columns: Tensor
    """[M] int64: ... where it stands in the answer."""

    @property
    def visible(self) -> Tensor:
        """[G, L, L] bool: what each token may see."""
        length = self.segments.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=self.segments.device).tril()
        queries, keys = self.segments[:, :, None], self.segments[:, None, :]
        return earlier & ((queries == keys) | (keys == 0))

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return int((self.segments != PADDING).sum())

    def masks(self, reaches: Mapping[str, Reach], dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """[G, 1, L, L] numbers to be added to attention's scores; one for each kind of layer (`Backbone.reaches`)."""
        masks, visible = {}, self.visible
        for kind, reach in reaches.items():
            seen = visible & reach.covers(self.positions[:, :, None], self.positions[:, None, :])
            hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            masks[kind] = hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        return masks.get("", masks)

    def unpack(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        """[M] values -> [N, C], 0 where an answer has no token."""
        return values.new_zeros(shape).index_put((self.rows, self.columns), values)


def packed(groups: Sequence[Answers], device: torch.device | None = None) -> Packed:
    """Each group as a row: a prompt with all of its answers."""
    rows = [_lay(prompt, answers) for prompt, answers in groups]
    length = max(len(row.tokens) for row in rows)

    def table(columns: list[list[int]], filler: int) -> Tensor:
        padded = [column + [filler] * (length - len(column)) for column in columns]
        return torch.tensor(padded, device=device)

    segments = table([row.segments for row in rows], PADDING)
    predicting = torch.zeros_like(segments, dtype=torch.bool)
    for index, row in enumerate(rows):
        predicting[index, [target[0] for target in row.targets]] = True
    targets = torch.tensor([target for row in rows for target in row.targets], device=device).reshape(-1, 4)
    return Packed(
        input_ids=table([row.tokens for row in rows], 0),
        positions=table([row.positions for row in rows], 0),
        segments=segments,
        predicting=predicting,
        token_ids=targets[:, 1],
        rows=targets[:, 2],
        columns=targets[:, 3],
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """One prompt with its answers; `targets` are (place, token, answer, column) of each answer's tokens."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    targets: list[tuple[int, int, int, int]]


def _lay(prompt: Sequence[int], answers: Sequence[tuple[int, Sequence[int]]]) -> _Row:
    last = len(prompt) - 1
    tokens, positions, segments = list(prompt[:last]), list(range(last)), [0] * last
    targets = []
    for number, (row, answer) in enumerate(answers, 1):
        start = len(tokens)
        targets += [(start + column, token, row, column) for column, token in enumerate(answer)]
        row_tokens = [prompt[last], *answer[:-1]]
        tokens += row_tokens
        positions += range(last, last + len(row_tokens))
        segments += [number] * len(row_tokens)
    return _Row(tokens, positions, segments, targets)
