"""Answers to one prompt in one row, so that the prompt is run once and not once an answer.

A row is the prompt but for its last token, then for each answer the prompt's last token again and the answer's tokens.
Positions count from the prompt's beginning in each answer, and an answer sees the prompt and itself, so every number is
what it would be in a row of its own; the output head runs where an answer's token is predicted and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.models.forward.row_cache import Reach

_PADDING = -1


@dataclass(frozen=True, slots=True)
class Packed:
    """G rows of at most L tokens, and where the M tokens of the answers stand in them, in the order of the rows."""

    input_ids: Tensor
    """[G, L] int64."""
    positions: Tensor
    """[G, L] int64."""
    visible: Tensor
    """[G, L, L] bool: what each token may see."""
    predicting: Tensor
    """[G, L] bool, M of them True: the tokens that an answer's token is predicted from."""
    token_ids: Tensor
    """[M] int64: the tokens that are predicted."""
    rows: Tensor
    """[M] int64: whose answer each of them belongs to, and ..."""
    columns: Tensor
    """[M] int64: ... where it stands in the answer."""

    def masks(self, reaches: Mapping[str, Reach], dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """[G, 1, L, L] numbers to be added to attention's scores; one for each kind of layer (`Backbone.reaches`)."""
        masks = {}
        for kind, reach in reaches.items():
            seen = self.visible & reach.covers(self.positions[:, :, None], self.positions[:, None, :])
            hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            masks[kind] = hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        return masks.get("", masks)

    def unpack(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        """[M] values -> [N, C], 0 where an answer has no token."""
        return values.new_zeros(shape).index_put((self.rows, self.columns), values)


def pack(input_ids: Tensor, attention_mask: Tensor, num_answer_columns: int) -> Packed:
    """[N, P + C] prompts, padded on the left, with answers of at most C tokens, padded on the right."""
    ids, real = input_ids.tolist(), attention_mask.bool().tolist()
    width = input_ids.shape[1] - num_answer_columns
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for row in range(len(ids)):
        prompt = tuple(token for token, keep in zip(ids[row][:width], real[row][:width], strict=True) if keep)
        answer = [token for token, keep in zip(ids[row][width:], real[row][width:], strict=True) if keep]
        groups.setdefault(prompt, []).append((row, answer))
    return _packed([_lay(prompt, answers) for prompt, answers in groups.items()], input_ids.device)


@dataclass(frozen=True, slots=True)
class _Row:
    """One prompt with its answers; `targets` are (place, token, row, column) of each answer's tokens."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    targets: list[tuple[int, int, int, int]]


def _lay(prompt: tuple[int, ...], answers: list[tuple[int, list[int]]]) -> _Row:
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


def _packed(rows: list[_Row], device: torch.device) -> Packed:
    length = max(len(row.tokens) for row in rows)

    def table(columns: list[list[int]], filler: int) -> Tensor:
        padded = [column + [filler] * (length - len(column)) for column in columns]
        return torch.tensor(padded, device=device)

    segments = table([row.segments for row in rows], _PADDING)
    earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    predicting = torch.zeros_like(segments, dtype=torch.bool)
    for index, row in enumerate(rows):
        predicting[index, [target[0] for target in row.targets]] = True
    targets = torch.tensor([target for row in rows for target in row.targets], device=device)
    return Packed(
        input_ids=table([row.tokens for row in rows], 0),
        positions=table([row.positions for row in rows], 0),
        visible=earlier & (same | (segments[:, None, :] == 0)),
        predicting=predicting,
        token_ids=targets[:, 1],
        rows=targets[:, 2],
        columns=targets[:, 3],
    )
