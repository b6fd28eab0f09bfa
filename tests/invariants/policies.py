"""What a decoder samples from, read off its traces: the policy at every step, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from trimtab.answers import Answer
from trimtab.decoding.decoder import Decoder


def steps(decoder: Decoder, answer: Answer) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """(prefix, [V] mixed log-probabilities at temperature 1) for each token of a traced answer."""
    assert answer.trace is not None
    for count, note in enumerate(answer.trace):
        policy = torch.full((decoder.model.vocab_size,), torch.nan)
        for rival in note.alternatives:
            policy[rival.token_id] = rival.mixed_logprob
        yield (*answer.prompt_ids, *answer.token_ids[:count]), policy


def walk(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    weights: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
    max_new_tokens: int = 5,
    plausibility: float = 0.0,
) -> list[tuple[tuple[int, ...], Tensor]]:
    """Every step of some sampled answers, all prompts in one batch."""
    answers = decoder.generate(
        prompts,
        weights=weights,
        max_new_tokens=max_new_tokens,
        plausibility=plausibility,
        ignore_eos=True,
        seed=7,
        trace=True,
        num_alternatives=decoder.model.vocab_size,
    )
    return [step for answer in answers for step in steps(decoder, answer)]


def policies_at(decoder: Decoder, prefixes: Sequence[Sequence[int]]) -> Tensor:
    """[N, V]: the policy after each prefix."""
    return torch.stack([policy for _, policy in walk(decoder, prefixes, max_new_tokens=1)])
