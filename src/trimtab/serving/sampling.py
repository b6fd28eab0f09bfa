"""What the wire says of sampling parameters: their ranges and meanings, from the fields of `SamplingParams`."""

from __future__ import annotations

import math

from annotated_types import Interval

from trimtab.fields import table
from trimtab.params import SamplingParams


def bounds(name: str) -> Interval:
    """The range of a parameter, for the validator and for the published schema."""
    entry = table(SamplingParams)[name]
    low, high = (None if math.isinf(bound) else bound for bound in (entry.low, entry.high))
    return Interval(
        ge=None if entry.open_low else low,
        gt=low if entry.open_low else None,
        le=None if entry.open_high else high,
        lt=high if entry.open_high else None,
    )


def meaning(name: str) -> str:
    """What a parameter does, and what holds where a request does not give it."""
    entry = table(SamplingParams)[name]
    return f"{entry.sentence()} (not given: {entry.unset})" if entry.unset else entry.sentence()
