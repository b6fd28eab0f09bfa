"""The training objectives as pure functions on tensors. float32 throughout, whatever the model computes in.

Source: GenARM (Xu et al., ICLR 2025, arXiv 2410.08193). An autoregressive reward model factorises the reward over
tokens, r(x, y) = Σ_t log π_r(y_t | x, y_<t) (its equation 5), and is trained on preference pairs with
−log σ(β_r·(log π_r(y_w | x) − log π_r(y_l | x))): sums over tokens, not means, and no reference model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.mixing.forms import PRODUCT


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """log π(label) at each position: `logits` [N, V] in any dtype and `labels` [N] int64 give [N] float32."""
    # Not gather − logsumexp, whose backward pass holds two more tensors of [N, V].
    return -torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def shift_logprobs(logits: Tensor, base: Tensor, labels: Tensor) -> Tensor:
    """log π_r(label) − log π_base(label) at each position, from the `logits` of both [N, V]: [N] float32."""
    return token_logprobs(logits, labels) - token_logprobs(base, labels)


def mixed_logprobs(logits: Tensor, base: Tensor, labels: Tensor, *, weight: float, form: str) -> Tensor:
    """log m(label) at each position, m what decoding draws from: [N] float32.

    `logits` and `base` are the guide's and its base's, [N, V] in any dtype. m ∝ π_base · π_r^w for a product (as GenARM
    decodes), π_base · (π_r / π_base)^w for a shift.
    """
    return token_logprobs(mixed_logits(logits, base, weight=weight, form=form), labels)


def mixed_logits(logits: Tensor, base: Tensor, *, weight: float, form: str) -> Tensor:
    """Logits of the mix, not normalised: [N, V] float32, of the guide's `logits` and its base's as `mixed_logprobs`."""
    share = 1.0 if form == PRODUCT else 1.0 - weight
    return share * base.float() + weight * logits.float()


def head_logprobs(logits: Tensor, scores: Tensor, labels: Tensor, *, weight: float) -> Tensor:
    """log m(label) at each position, m ∝ π_base · exp(w · scores): [N] float32.

    `logits` are the base's and `scores` a head's, [N, V] in any dtype.
    """
    return token_logprobs(logits.float() + weight * scores.float(), labels)


def sequence_means(logprobs: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """The mean over its tokens of each sequence's log π(y_t), given as `sequence_logprobs` is: [R] float32."""
    counts = torch.bincount(rows, minlength=num_rows).clamp(min=1)
    return sequence_logprobs(logprobs, rows, num_rows) / counts


def sequence_logprobs(logprobs: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Σ_t log π(y_t) of each sequence: the tokens' [N] log-probabilities and the row [N] that each belongs to give [R].

    A row without tokens sums to 0.
    """
    return torch.zeros(num_rows, dtype=torch.float32, device=logprobs.device).index_add(0, rows, logprobs.float())


def arm_loss(chosen: Tensor, rejected: Tensor, *, beta: float | Tensor, gamma: float = 0.0) -> Tensor:
    """−log σ(β_r·(Σ log π_r(y_w) − Σ log π_r(y_l)) − γ) of each pair (GenARM, where γ is 0).

    `chosen` and `rejected` are [B] summed log-probabilities of the responses; the result is [B] float32. β_r may
    be one for each pair, [B]; γ is a margin to be exceeded.
    """
    return -torch.nn.functional.logsigmoid(margins(chosen, rejected, beta=beta) - gamma)


def margins(chosen: Tensor, rejected: Tensor, *, beta: float | Tensor) -> Tensor:
    """β_r·(Σ log π_r(y_w) − Σ log π_r(y_l)): the log-odds that the model gives to the preference. [B], [B] -> [B]."""
    return beta * (chosen.float() - rejected.float())


def correct(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[B] bool: the preferred response has the higher reward. A tie is not correct."""
    return chosen > rejected


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, center: float = 0.0) -> Tensor:
    """−log σ(r_w − r_l) + center·(r_w + r_l)² of each pair: [B], [B] rewards -> [B] float32.

    Ouyang et al., arXiv 2203.02155, equation 1 with two answers to a prompt; the second term is Eisenstein et al.'s
    (arXiv 2312.09244), 0 unless asked for.
    """
    chosen, rejected = chosen.float(), rejected.float()
    return -torch.nn.functional.logsigmoid(chosen - rejected) + center * (chosen + rejected).square()


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """−log σ(β·(ρ_w − ρ_l)) of each pair, ρ = log π(y | x) − log π_ref(y | x): [B], [B] log-ratios -> [B] float32.

    Rafailov et al., NeurIPS 2023, arXiv 2305.18290, equation 7.
    """
    return -torch.nn.functional.logsigmoid(margins(chosen, rejected, beta=beta))
