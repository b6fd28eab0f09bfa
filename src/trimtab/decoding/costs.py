"""What a step costs with drafts of some length, beside one without."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.caches import Cache, caches_of
from trimtab.core import Session
from trimtab.decoding.lanes import Lane, Rows
from trimtab.models.forward.times import guessed
from trimtab.models.forward.trunk import Trunk


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


def _pass(cache: Cache, columns: int) -> float:
    """A pass over all rows of a cache, so many tokens each: in seconds, or in guesses where none was measured."""
    if not isinstance(cache, Trunk):
        return 1.0
    num_tokens = max(1, cache.num_rows) * columns
    measured = cache.times.seconds(num_tokens)
    return guessed(num_tokens) if measured is None else measured
