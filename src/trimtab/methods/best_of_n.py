"""Best-of-N: N answers of the base, the one with the highest reward.

Stiennon et al. (arXiv 2009.01325). The strength is N. KL(policy ‖ base) is at most ln N − (N − 1)/N nats (Beirami et
al., arXiv 2401.01879, theorem 1): a bound, reached where no two answers are alike. That is to the policy which the
drafts are drawn from; where a temperature, a filter or a penalty makes it another than the base, log π_drafts(y) −
log π_base(y) of the chosen answer y is added, whose mean over answers is the rest of the way. The first draft has the
request's own seed, so N = 1 is the base's own answer. It knows the reward of whole answers only, and pays for N of
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from trimtab.answers import Answer
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.errors import ScoreError
from trimtab.methods.method import BOUND, Strength, answers, derived_seed, number
from trimtab.storage.scorers import Scorer


class BestOfN:
    """The best of N answers by a scorer; of equals the first."""

    kl_kind = BOUND

    def __init__(self, decoder: GenerationEngine, scorer: Scorer, *, sign: float = 1.0) -> None:
        self._decoder = decoder
        self._scorer = scorer
        self._sign = sign
        self.num_tokens_read = 0

    def answer(
        self, prompts: Sequence[Prompt], strength: Strength, params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        count = int(number(strength, what="give the number of drafts", low=1, whole=True))
        repeated = [prompt for prompt in prompts for _ in range(count)]
        draft_seeds = [seed if draft == 0 else derived_seed(seed, draft) for seed in seeds for draft in range(count)]
        drafts = answers(self._decoder, repeated, params, draft_seeds)
        for index, prompt in enumerate(prompts):
            candidates = [next(drafts) for _ in range(count)]
            self.num_tokens_read += sum(len(draft.token_ids) for draft in candidates)
            rewards = self._rewards(index, prompt, [draft.text for draft in candidates]) if count > 1 else [0.0]
            yield candidates[max(range(count), key=lambda draft: self._sign * rewards[draft])]

    def _rewards(self, index: int, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        try:
            return self._scorer([prompt] * len(texts), texts)
        except ScoreError as error:
            raise error.at(f"a draft for prompt {index}", index=index) from error.__cause__

    def kl(self, answer: Answer, strength: Strength) -> float | None:
        count = number(strength, what="give the number of drafts", low=1, whole=True)
        if answer.sampled_logprob is None or answer.base_logprob is None:
            return None
        return math.log(count) - (count - 1) / count + answer.sampled_logprob - answer.base_logprob
