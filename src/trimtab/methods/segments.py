"""Segment-level rejection: an answer grows by pieces of the base's own text, each accepted or drawn again.

After CARDS (Li et al., arXiv 2406.16306): a proposed segment is accepted with probability
min(1, exp((r(x, y) − r*) · s)), r the reward of the answer up to it, r* a target, s = 1/β the strength; after
`max_tries` proposals the best of them is taken.

Where it differs: segments have a fixed number of tokens (CARDS cuts where the base's entropy is high); r* does not rise
along the answer; a proposal reads the prefix anew, since it is a request like any other. What KL it costs is not known.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from trimtab.answers import Answer, finished
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.decoding.text import text_of
from trimtab.errors import ScoreError
from trimtab.methods.method import UNKNOWN, Strength, derived_seed, number
from trimtab.prompts import encode_prompt
from trimtab.storage.scorers import Scorer


@dataclass(slots=True)
class _Growing:
    """An answer on its way: what is accepted, and the best proposal of the present segment."""

    index: int
    """Among the prompts."""
    prompt: Prompt
    prompt_ids: list[int]
    seed: int
    parts: list[Answer] = field(default_factory=list)
    tries: int = 0
    best: tuple[float, Answer] | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token for part in self.parts for token in part.token_ids]

    def done(self, max_new_tokens: int) -> bool:
        ended = bool(self.parts) and self.parts[-1].finish_reason != "length"
        return ended or len(self.token_ids) >= max_new_tokens


class SegmentRejection:
    """Answers that grow by accepted segments of `segment_tokens` tokens; the strength is 1/β."""

    kl_kind = UNKNOWN

    def __init__(
        self, decoder: GenerationEngine, scorer: Scorer, *, target: float, segment_tokens: int = 8, max_tries: int = 10
    ) -> None:
        self._decoder = decoder
        self._scorer = scorer
        self._target = target
        self._segment_tokens = segment_tokens
        self._max_tries = max_tries
        self.num_tokens_read = 0

    def answer(
        self, prompts: Sequence[Prompt], strength: Strength, params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        steepness = number(strength, what="give 1/β", low=0)
        rows = [
            _Growing(index, prompt, encode_prompt(self._decoder.model, prompt), seed)
            for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        while growing := [row for row in rows if not row.done(params.max_new_tokens)]:
            self._round(growing, steepness, params)
        for row in rows:
            yield self._whole(row, params.stop)

    def kl(self, answer: Answer, strength: Strength) -> float | None:
        return None

    def _round(self, rows: Sequence[_Growing], steepness: float, params: SamplingParams) -> None:
        """One proposal for each row that is not done."""
        requests = []
        for row in rows:
            room = min(self._segment_tokens, params.max_new_tokens - len(row.token_ids))
            seed = derived_seed(row.seed, len(row.parts), row.tries)
            ids = [*row.prompt_ids, *row.token_ids]
            requests.append((ids, replace(params, max_new_tokens=room, seed=seed)))
        proposed = list(finished(self._decoder.answers(requests)))
        self.num_tokens_read += sum(len(part.token_ids) for part in proposed)
        found = [self._ended(row, part, params.stop) for row, part in zip(rows, proposed, strict=True)]
        try:
            rewards = self._scorer([row.prompt for row in rows], [text for _, text in found])
        except ScoreError as error:
            if error.index is None:
                raise
            index = rows[error.index].index
            raise error.at(f"a segment for prompt {index}", index=index) from error.__cause__
        for row, (part, _), reward in zip(rows, found, rewards, strict=True):
            if row.best is None or reward > row.best[0]:
                row.best = (reward, part)
            luck = random.Random(derived_seed(row.seed, len(row.parts), row.tries, 1)).random()
            accepted = luck < math.exp(min(0.0, steepness * (reward - self._target)))
            row.tries += 1
            if accepted or row.tries >= self._max_tries:
                row.parts.append(part if accepted else row.best[1])
                row.tries, row.best = 0, None

    def _ended(self, row: _Growing, part: Answer, stop: Sequence[str]) -> tuple[Answer, str]:
        """A proposal, cut where it completes a stop string that an accepted segment begins, and the text up to it."""
        text, num_tokens = self._text(row, part, stop)
        keep = len(part.token_ids) if num_tokens is None else num_tokens - len(row.token_ids)
        if keep < len(part.token_ids):
            trace = None if part.trace is None else part.trace[:keep]
            part = replace(part, token_ids=part.token_ids[:keep], trace=trace, finish_reason="stop")
        elif num_tokens is not None:
            part = replace(part, finish_reason="stop")
        return part, text

    def _text(self, row: _Growing, part: Answer | None, stop: Sequence[str]) -> tuple[str, int | None]:
        """See `text.text_of`. The token that ends an answer has no text."""
        tokenizer = self._decoder.model.tokenizer
        assert tokenizer is not None, "rewards read text"
        last = part or row.parts[-1]
        token_ids = [*row.token_ids, *(part.token_ids if part else ())]
        return text_of(tokenizer, row.prompt_ids, token_ids[:-1] if last.finish_reason == "eos" else token_ids, stop)

    def _whole(self, row: _Growing, stop: Sequence[str]) -> Answer:
        """The accepted parts as one answer."""
        last = row.parts[-1]
        trace = None if last.trace is None else tuple(step for part in row.parts for step in part.trace or ())
        return replace(
            last,
            prompt=row.prompt,
            prompt_ids=tuple(row.prompt_ids),
            token_ids=tuple(row.token_ids),
            text=self._text(row, None, stop)[0],
            seed=row.seed,
            trace=trace,
        )
