"""Segment-level rejection: an answer grows by pieces of the base's own text, each accepted or drawn again.

After CARDS (Li et al., arXiv 2406.16306): a proposed segment is accepted with probability
min(1, exp((r(x, y) − r*) · s)), r the reward of the answer up to it, r* a target, s = 1/β the strength; after
`max_tries` proposals the best of them is taken.

Where it differs: segments have a fixed number of tokens, and r* does not rise along the answer (`methods.cards` gives
other values of `draw` and `start`); a proposal reads the prefix anew, since it is a request like any other. What KL it
costs is not known.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from trimtab.answers import Answer, finished
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.decoding.text import text_of
from trimtab.errors import ScoreError
from trimtab.methods.method import UNKNOWN, Strength, derived_seed, number, refuse_parts_of_a_whole
from trimtab.prompts import encode_prompt
from trimtab.storage.scorers import Scorer

Request: TypeAlias = tuple[list[int], SamplingParams]
Draw: TypeAlias = Callable[[GenerationEngine, Sequence[Request]], tuple[list[Answer], int]]
"""One proposal for each request, in order, and how many tokens were drawn for them; one with `finish_reason` "length"
may be shorter than was asked for."""


def whole(engine: GenerationEngine, requests: Sequence[Request]) -> tuple[list[Answer], int]:
    """Proposals of as many tokens as are asked for."""
    drawn = list(finished(engine.answers(requests)))
    return drawn, sum(len(part.token_ids) for part in drawn)


@dataclass(slots=True)
class _Growing:
    """An answer on its way: what is accepted, and the best proposal of the present segment."""

    index: int
    """Among the prompts."""
    prompt: Prompt
    prompt_ids: list[int]
    seed: int
    prompt_reward: float = 0.0
    """r(x, ""), where the target rises from it."""
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
    """Answers that grow by accepted segments of at most `segment_tokens` tokens; the strength is 1/β.

    With `start` the target rises along the answer, from (1 − start)·r(x, "") + start·target before the first token to
    `target` at `max_new_tokens`.
    """

    kl_kind = UNKNOWN

    def __init__(
        self,
        engine: GenerationEngine,
        scorer: Scorer,
        *,
        target: float,
        start: float | None = None,
        segment_tokens: int = 8,
        max_tries: int = 10,
        draw: Draw = whole,
    ) -> None:
        self._engine = engine
        self._scorer = scorer
        self._target = target
        self._start = start
        self._draw = draw
        self._segment_tokens = segment_tokens
        self._max_tries = max_tries
        self.num_tokens_read = 0

    def answer(
        self, prompts: Sequence[Prompt], strength: Strength, params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        refuse_parts_of_a_whole(params, "Answers grow by segments")
        steepness = number(strength, what="give 1/β", low=0)
        rows = [
            _Growing(index, prompt, encode_prompt(self._engine.model, prompt), seed)
            for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        if self._start is not None:
            for row, reward in zip(rows, self._rewards(rows, [""] * len(rows)), strict=True):
                row.prompt_reward = reward
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
        drawn, num_drawn = self._draw(self._engine, requests)
        self.num_tokens_read += num_drawn
        proposals = [self._ended(row, part, params.stop) for row, part in zip(rows, drawn, strict=True)]
        rewards = self._rewards(rows, [text for _, text in proposals])
        for row, (part, _), reward in zip(rows, proposals, rewards, strict=True):
            if row.best is None or reward > row.best[0]:
                row.best = (reward, part)
            luck = random.Random(derived_seed(row.seed, len(row.parts), row.tries, 1)).random()
            num_tokens = len(row.token_ids) + len(part.token_ids)
            gap = reward - self._threshold(row, num_tokens / params.max_new_tokens)
            accepted = luck < math.exp(min(0.0, steepness * gap))
            row.tries += 1
            if accepted or row.tries >= self._max_tries:
                row.parts.append(part if accepted else row.best[1])
                row.tries, row.best = 0, None

    def _rewards(self, rows: Sequence[_Growing], texts: Sequence[str]) -> list[float]:
        try:
            return self._scorer([row.prompt for row in rows], texts)
        except ScoreError as error:
            if error.index is None:
                raise
            index = rows[error.index].index
            raise error.at(f"a segment for prompt {index}", index=index) from error.__cause__

    def _threshold(self, row: _Growing, share: float) -> float:
        """The reward at which a proposal that brings the answer to `share` of its tokens is always accepted."""
        if self._start is None:
            return self._target
        first = (1 - self._start) * row.prompt_reward + self._start * self._target
        return min(self._target, first + share * (self._target - first))

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
        tokenizer = self._engine.model.tokenizer
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
