"""Cascade reward sampling: segments that end where the base is unsure, each drawn until a reward model accepts it.

CARDS (Li et al., COLM 2025, arXiv 2406.16306). A segment is drawn token by token until the entropy of the base's next
token reaches `entropy` nats, at least `min_tokens` and at most `max_tokens` of them. It is accepted with probability
min(1, exp((r(x, y) − τ) / β)), the strength being 1/β; the threshold τ rises from (1 − start)·r(x, "") + start·target
to `target` at the answer's full length. After `max_tries` proposals the best of them is taken.

Where it differs: tokens are drawn with the sampling parameters of the request (the paper: top-k 40, temperature 0.7 or
0.8); the length at which τ reaches the target is the request's `max_new_tokens`; a proposal reads the prefix anew,
since it is a request like any other. What KL it costs is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from trimtab.answers import Answer, Step
from trimtab.decoding.engine import GenerationEngine
from trimtab.engines.maker import EngineMaker
from trimtab.methods.method import Policy
from trimtab.methods.segments import Request, SegmentRejection
from trimtab.storage.scorers import load_scorer


def build(engines: EngineMaker, options: Mapping[str, Any]) -> Policy:
    """CARDS on engines of one base."""
    return SegmentRejection(
        engines.make(),
        load_scorer(options["scorer"]),
        target=options["target"],
        start=options["start"],
        segment_tokens=options["max_tokens"],
        max_tries=options["max_tries"],
        draw=partial(until_unsure, entropy=options["entropy"], min_tokens=options["min_tokens"]),
    )


def until_unsure(
    engine: GenerationEngine, requests: Sequence[Request], *, entropy: float, min_tokens: int
) -> tuple[list[Answer], int]:
    """One proposal for each request, ended before the first token that the base is unsure of; tokens drawn in all.

    A request is cancelled at that token, which is drawn and thrown away: the next segment begins with it.
    """
    places = {engine.add(ids, replace(params, trace=True)): place for place, (ids, params) in enumerate(requests)}
    steps: list[list[Step]] = [[] for _ in requests]
    running = set(places)
    num_drawn = 0
    try:
        while running:
            for step in engine.step():
                proposal = steps[places[step.request_id]]
                if step.error is not None:
                    raise step.error
                num_drawn += 1
                if len(proposal) >= min_tokens and _is_unsure(step, entropy):
                    engine.cancel(step.request_id)
                    running.discard(step.request_id)
                    continue
                proposal.append(step)
                if step.finish_reason is not None:
                    running.discard(step.request_id)
    finally:
        for request_id in running:
            engine.cancel(request_id)
    return [_answer(request, proposal) for request, proposal in zip(requests, steps, strict=True)], num_drawn


def _is_unsure(step: Step, entropy: float) -> bool:
    measured = None if step.trace is None else step.trace.base_entropy
    assert measured is not None, "a request with a trace says so"
    return measured >= entropy


def _answer(request: Request, steps: Sequence[Step]) -> Answer:
    ids, params = request
    assert params.seed is not None, "each proposal has a seed of its own"
    trace = tuple(step.trace for step in steps if step.trace is not None)
    return Answer(
        prompt=ids,
        prompt_ids=tuple(ids),
        token_ids=tuple(step.token_id for step in steps if step.token_id is not None),
        text="".join(step.text for step in steps),
        finish_reason=steps[-1].finish_reason or "length",
        weights={},
        seed=params.seed,
        trace=trace if params.trace else None,
        temperature=1.0 if params.temperature is None else params.temperature,
    )
