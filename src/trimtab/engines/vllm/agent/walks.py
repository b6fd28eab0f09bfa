"""The walks of an agent over its candidates, one for each slot of vLLM's batch, and one candidate a step.

A slot's walk is what `mixing.selecting.walk` does in growing looks, spread over the engine's steps: `begin` chooses
the candidates from the base's log-probabilities, `judge` takes the score of the one that was fed. The candidates are
`selecting.survivors`'; what a score means under a threshold, and the choice, are the rule's. No vLLM here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.core import Candidates, Selection
from trimtab.mixing.rules import NEVER, bad_rows
from trimtab.mixing.sampling import sample
from trimtab.mixing.selecting import survivors


class Walks:
    """The walks of S slots. A slot that has not begun holds one candidate, token 0, which is kept unasked.

    `last_id` is the token of a row that cannot be decoded (NaN in the base's logits): an end-of-sequence id. `seed` is
    that of the draws of requests in which the agent is off.
    """

    def __init__(
        self, num_slots: int, selection: Selection, *, last_id: int, seed: int, device: torch.device | str
    ) -> None:
        self._rule = selection.rule
        self._selection = selection
        self._last_id = last_id
        self._generator = torch.Generator().manual_seed(seed)
        self._thresholds = torch.zeros(num_slots, dtype=torch.float32, device=device)
        self._top_k = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._top_p = torch.ones(num_slots, dtype=torch.float64, device=device)
        self._token_ids = torch.zeros(num_slots, 1, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(num_slots, 1, dtype=torch.float32, device=device)
        self._weighted = torch.full((num_slots, 1), NEVER, dtype=torch.float32, device=device)
        self._counts = torch.ones(num_slots, dtype=torch.int64, device=device)
        self._places = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._settled = torch.ones(num_slots, dtype=torch.bool, device=device)

    def admit(self, slot: int, threshold: float, top_k: int, top_p: float) -> None:
        """A request takes a slot. Threshold 0: the agent is off, and tokens are drawn from the base.

        `top_k` 0 and `top_p` 1, which is what vLLM's requests say where nobody does, mean what the agent asks for where
        it is on, and the whole vocabulary where it is off.
        """
        if threshold != 0:
            top_k = self._selection.top_k if top_k == 0 else top_k
            top_p = self._selection.top_p if top_p == 1 else top_p
        self._thresholds[slot] = threshold
        self._top_k[slot] = top_k
        self._top_p[slot] = top_p
        self._settled[slot] = True

    def begin(self, slots: Tensor, logits: Tensor) -> None:
        """New candidates for slots [N] from the base's logits [N, V] there."""
        policy = torch.log_softmax(logits.to(torch.float32), dim=-1)
        policy = torch.where(bad_rows(policy)[:, None], self._end(policy.shape[1]).to(policy), policy)
        off = self._thresholds[slots] == 0
        if bool(off.any()):
            policy = policy.index_copy(0, off.nonzero().squeeze(1), self._drawn(slots[off], policy[off]))
        top_k = torch.where(off, 1, self._top_k[slots])
        top_p = torch.where(off, 1.0, self._top_p[slots])
        candidates, counts = survivors(policy, top_k=top_k, top_p=top_p, min_p=torch.zeros_like(top_p))
        width = candidates.token_ids.shape[1]
        self._widen(width)
        self._token_ids[slots, :width] = candidates.token_ids
        self._logprobs[slots] = NEVER
        self._logprobs[slots, :width] = candidates.logprobs
        self._weighted[slots] = NEVER
        self._counts[slots] = counts
        self._places[slots] = 0
        self._settled[slots] = False

    def tokens(self, slots: Tensor) -> Tensor:
        """[N]: the candidates to be fed next, or that have just been fed."""
        return self._token_ids[slots, self._places[slots]]

    def judge(self, slots: Tensor, scores: Tensor) -> Tensor:
        """Take the scores [N] of the candidates that were fed; [N] bool: which are kept.

        Where one is not, `tokens` says what to feed instead: the next candidate, or the one that the rule falls back
        on, which is then kept unasked. One that is alone is kept whatever its score is: the rule can choose no other.
        """
        places, settled = self._places[slots], self._settled[slots]
        verdicts = self._rule.weigh(scores[:, None], self._thresholds[slots, None]).squeeze(1)
        self._weighted[slots, places] = verdicts
        decided = (verdicts > 0) | (places + 1 >= self._counts[slots])
        candidates = Candidates(self._token_ids[slots], self._logprobs[slots])
        chosen = self._rule.policy(candidates, self._weighted[slots]).argmax(dim=-1)
        kept = settled | (decided & (chosen == places))
        self._places[slots] = torch.where(kept, places, torch.where(decided, chosen, places + 1))
        self._settled[slots] = settled | decided
        return kept

    def _drawn(self, slots: Tensor, policy: Tensor) -> Tensor:
        """[N, V] log-probabilities: 0 at a token drawn from a policy [N, V] at temperature 1, −inf elsewhere."""
        one = torch.ones(len(slots), dtype=torch.float64, device=policy.device)
        keys = torch.randint(-(1 << 63), (1 << 63) - 1, (len(slots),), generator=self._generator, dtype=torch.int64)
        places = sample(
            policy,
            keys.to(policy.device),
            temperature=one,
            top_k=self._top_k[slots],
            top_p=self._top_p[slots],
            min_p=one - one,
        )
        return torch.full_like(policy, NEVER).scatter_(1, places[:, None], 0.0)

    def _end(self, vocab_size: int) -> Tensor:
        """[1, V]: surely the last token."""
        return torch.full((1, vocab_size), NEVER).index_fill_(1, torch.tensor([self._last_id]), 0.0)

    def _widen(self, width: int) -> None:
        missing = width - self._token_ids.shape[1]
        if missing > 0:
            self._token_ids = torch.nn.functional.pad(self._token_ids, (0, missing))
            self._logprobs = torch.nn.functional.pad(self._logprobs, (0, missing), value=NEVER)
            self._weighted = torch.nn.functional.pad(self._weighted, (0, missing), value=NEVER)
