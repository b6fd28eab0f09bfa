"""The answers of a step of TRL's, which pads them to one rectangle, as rows that share their prompts."""

from __future__ import annotations

from torch import Tensor

from trimtab.training.pairs.packing import Packed, packed


def pack(input_ids: Tensor, attention_mask: Tensor, num_answer_columns: int) -> Packed:
    """[N, P + C] prompts, padded on the left, with answers of at most C tokens, padded on the right."""
    ids, real = input_ids.tolist(), attention_mask.bool().tolist()
    width = input_ids.shape[1] - num_answer_columns
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for row in range(len(ids)):
        prompt = tuple(token for token, keep in zip(ids[row][:width], real[row][:width], strict=True) if keep)
        answer = [token for token, keep in zip(ids[row][width:], real[row][width:], strict=True) if keep]
        groups.setdefault(prompt, []).append((row, answer))
    return packed(list(groups.items()), input_ids.device)
