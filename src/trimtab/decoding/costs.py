"""What a step costs with drafts of some length, beside one without."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.caches import Cache, Timed, caches_of
from trimtab.core import Session
from trimtab.decoding.lanes import Lane, Rows


class StepCost:
    """The cost of one step by the number of tokens drafted for each row, as long as its passes took lately."""

    def __init__(self, base: Session, lanes: Sequence[Lane], source: Rows[Session] | None) -> None:
        drafting = caches_of([] if source is None else [source.session])
        alone = {id(cache) for cache in drafting}
        self._is_guide = source in lanes
        self._reading = [
            cache for cache in caches_of([base, *(lane.session for lane in lanes)]) if id(cache) not in alone
        ]
        self._drafting = drafting

    def __call__(self, num: int) -> float:
        reading = sum(_pass(cache, num + 1) for cache in self._reading)
        passes = num + 1 if self._is_guide else num
        return reading + passes * sum(_pass(cache, 1) for cache in self._drafting)


def _pass(cache: Cache, num_tokens: int) -> float:
    """A pass that reads so many tokens of every row; all are alike where a cache does not say."""
    return cache.pass_cost(max(1, cache.num_rows) * num_tokens) if isinstance(cache, Timed) else 1.0
