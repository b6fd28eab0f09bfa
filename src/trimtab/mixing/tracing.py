"""Why a token was chosen: log-probabilities, ranks and KL from the tensors of one decoding step, and guides' shares.

Pure functions. What shows a trace (`trimtab explain`, its page, the playground) takes the shares, their words and the
strongest colour from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trimtab.answers import INSIGNIFICANT, ONLY, Alternative, Choice, TokenTrace, Trial
from trimtab.mixing.rules import NEVER
from trimtab.mixing.sampling import normalised
from trimtab.mixing.selecting import Walk

SHARE = (
    "A guide's share of a token is its weight × (score − centre), in nats; the centre is the guide's mean score of the "
    "tokens recorded at that step (the chosen one and its rivals), each counted by its probability under the base. A "
    "positive share raises the token above what the base was about to say, a negative one lowers it."
)
"""The definition of a share in words: it stands on every page that shows one."""

FULL_COLOUR = math.log(20)
"""The change of a token's log-probability, either way, that is shown in the strongest colour: 20 times as likely."""


def shares_of(trace: TokenTrace, weights: Mapping[str, float]) -> dict[int, dict[str, float]]:
    """Token id -> guide -> its share, for each token recorded at a step; `SHARE` says in words what that is.

    A constant added to all scores of a guide changes nothing, so a score says something only against the others of its
    step. −inf where the guide forbids the token, whatever the sign of its weight; 0 at weight 0.
    """
    recorded = {item.token_id: item for item in (*trace.alternatives, trace.chosen)}
    centres = {name: _centre(name, list(recorded.values())) for name in trace.chosen.guide_scores}
    return {
        token_id: {name: _share(weights[name], score - centres[name]) for name, score in item.guide_scores.items()}
        for token_id, item in recorded.items()
    }


def _share(weight: float, height: float) -> float:
    """What a guide forbids stays forbidden at any weight but 0."""
    if weight == 0:
        return 0.0
    return -math.inf if height == -math.inf else weight * height


def _centre(name: str, recorded: Sequence[Alternative]) -> float:
    """The mean score of a guide over the recorded tokens, weighted by the base; tokens that it forbids are left out."""
    finite = [(math.exp(item.base_logprob), item.guide_scores[name]) for item in recorded]
    finite = [(mass, score) for mass, score in finite if mass > 0 and math.isfinite(score)]
    total = sum(mass for mass, _ in finite)
    return sum(mass * score for mass, score in finite) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class StepTensors:
    """One decoding step over the whole vocabulary; every table is [B, V] float32 at temperature 1."""

    base: Tensor
    mixed: Tensor
    scores: Mapping[str, Tensor]
    """Guide name -> unweighted scores."""
    ran: Mapping[str, Tensor]
    """Guide name -> [B] bool: rows that the guide scored."""
    choices: Mapping[int, tuple[str, Walk, int]] = field(default_factory=dict)
    """Row -> the guide that selected there, its walk, and the row's place in it."""
    final: Tensor | None = None
    """[B, V]: what was drawn from, after temperature and filters, at −inf what was dropped and the rest not
    renormalised; the rule's policy at the temperature where a guide selected. None: no row has a trace."""


def kl_divergence(policy: Tensor, base: Tensor) -> Tensor:
    """KL(policy ‖ base) in nats for each row of [B, V] tables of normalised log-probabilities: [B].

    `policy` is what a token is drawn from, after temperature, penalties and filters; `base`
    the frozen model at temperature 1. A policy that is sure of its token has −log π_base of it.
    """
    gap = torch.where(torch.isneginf(policy), 0.0, policy - base)
    return (policy.exp() * gap).sum(dim=-1).clamp(min=0.0)


def entropy(logprobs: Tensor) -> Tensor:
    """Shannon entropy in nats for each row of a [B, V] table of normalised log-probabilities: [B]."""
    return -torch.where(torch.isneginf(logprobs), 0.0, logprobs.exp() * logprobs).sum(dim=-1)


def rank_of(table: Tensor, token_ids: Tensor) -> Tensor:
    """[B] ranks of `token_ids` [B] in a [B, V] table: how many tokens are strictly better."""
    value = table.gather(1, token_ids[:, None])
    return (table > value).sum(dim=-1)


def traces(
    step: StepTensors,
    token_ids: Sequence[int],
    rows: Sequence[int],
    rivals: Sequence[int],
) -> list[TokenTrace]:
    """The trace of some rows, aligned with their tokens and numbers of alternatives (`rivals`)."""
    assert step.final is not None, "what rows with a trace were drawn from is kept"
    at = torch.tensor(rows, device=step.base.device)
    picked = StepTensors(
        step.base[at],
        step.mixed[at],
        {name: table[at] for name, table in step.scores.items()},
        {name: mask[at] for name, mask in step.ran.items()},
    )
    chosen = torch.tensor(token_ids, device=at.device)
    sampled = normalised(step.final[at])
    kls = kl_divergence(sampled, picked.base).tolist()
    drawn = sampled.gather(1, chosen[:, None]).squeeze(1).tolist()
    entropies = entropy(picked.base).tolist()
    ranks = rank_of(picked.base, chosen).tolist(), rank_of(picked.mixed, chosen).tolist()
    return [
        TokenTrace(
            _alternative(picked, row, token_ids[row], ranks[0][row], ranks[1][row]),
            _rivals(picked, row, rivals[row]),
            kls[row],
            _choice(*step.choices[rows[row]], token_ids[row]) if rows[row] in step.choices else None,
            drawn[row],
            entropies[row],
        )
        for row in range(len(rows))
    ]


def _choice(guide: str, walk: Walk, row: int, token_id: int) -> Choice:
    """What a walk found in one of its rows."""
    count = int(walk.counts[row])
    ids = walk.candidates.token_ids[row, :count].tolist()
    logprobs = walk.candidates.logprobs[row, :count].tolist()
    scores, weighted = walk.scores[row, :count].tolist(), walk.weighted[row, :count].tolist()
    trials = tuple(
        Trial(token, logprob, None if score != score else score, walk.accepts and margin > 0)
        for token, logprob, score, margin in zip(ids, logprobs, scores, weighted, strict=True)
    )
    index = ids.index(token_id)
    weighed = "none" if walk.accepts else "weighed"
    reason = ONLY if count == 1 else "accepted" if trials[index].accepted else weighed
    choice = Choice(guide, trials, index, reason, needs_all=not walk.lazy)
    if walk.gate is None or not bool(walk.gate.gated[row]) or count == 1:
        return choice
    return replace(
        choice,
        reason=INSIGNIFICANT if bool(walk.closed[row]) else reason,
        significance=float(walk.significance[row]),
        least_significance=float(walk.gate.least[row]),
    )


def _rivals(step: StepTensors, row: int, count: int) -> tuple[Alternative, ...]:
    """The most probable tokens of the mixed policy, then those of the base that are not among them.

    A token that cannot happen is not a rival, and a guide that selects leaves few.
    """
    if count == 0:
        return ()
    count = min(count, step.base.shape[1])
    mixed = step.mixed[row].topk(count)
    best = mixed.indices[mixed.values > NEVER].tolist()
    best += [token for token in step.base[row].topk(count).indices.tolist() if token not in best]
    ids = torch.tensor(best, device=step.base.device)
    width = len(best)
    base_ranks = rank_of(step.base[row].expand(width, -1), ids).tolist()
    mixed_ranks = rank_of(step.mixed[row].expand(width, -1), ids).tolist()
    return tuple(
        _alternative(step, row, token, base_ranks[index], mixed_ranks[index]) for index, token in enumerate(best)
    )


def _alternative(step: StepTensors, row: int, token_id: int, base_rank: int, mixed_rank: int) -> Alternative:
    return Alternative(
        token_id=token_id,
        base_logprob=float(step.base[row, token_id]),
        guide_scores={
            name: float(table[row, token_id]) for name, table in step.scores.items() if bool(step.ran[name][row])
        },
        mixed_logprob=float(step.mixed[row, token_id]),
        base_rank=base_rank,
        mixed_rank=mixed_rank,
    )
