"""What a student of sentences learns: the mix that decoding draws from with them, and how far the student is from it.

float32 throughout, whatever the model computes in. Source: context distillation (Askell et al., arXiv 2112.00861;
Snell et al., arXiv 2209.15189), where a model that does not read a prompt learns from itself reading it; here it learns
the mix of context steering (arXiv 2405.01768) or of classifier-free guidance (arXiv 2306.17806).
"""

from __future__ import annotations

import torch
from torch import Tensor


def target_logprobs(base: Tensor, towards: Tensor, away: Tensor, *, strength: float) -> Tensor:
    """log t at each position, t ∝ π_base · (π_s₊ / π_s₋)^λ: [N, V] float32.

    `base`, `towards` and `away` are the logits [N, V], in any dtype, of the base that reads the prompt alone, the
    sentence s₊ before it, and s₋ before it (with one sentence, `base` again). A token that any of them forbids (−inf)
    has −inf.
    """
    towards, away = towards.float(), away.float()
    unknown = torch.isneginf(towards) | torch.isneginf(away)
    shift = (towards - away).masked_fill(unknown, -torch.inf)
    return torch.log_softmax(base.float() + strength * shift, dim=-1)


def kl_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(t ‖ π) in nats at each position over the whole vocabulary: [N] float32.

    `target` [N, V] is log t, `logits` [N, V] are the student's, in any dtype. A token that t never draws counts
    nothing.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    terms = target.exp() * (target - logprobs)
    return terms.masked_fill(torch.isneginf(target), 0.0).sum(dim=-1)
