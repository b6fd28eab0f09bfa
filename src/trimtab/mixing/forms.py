"""The form of a guide that is a language model: what its score is, and which weights mean something in it. Pure.

A *product* scores by log π_guide (GenARM, arXiv 2410.08193): base · guide^w. The guide is a whole language model, so
most of what it says its base says too, and the base counts 1 + w times. A *shift* scores by log π_guide − log π_ref:
ref is the model that the guide was trained from, so only what training changed is weighed. At weight −1 a product
divides the base by itself, and noise is left; a shift steers the other way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from trimtab.errors import OptionError, about, naming

PRODUCT = "product"
SHIFT = "shift"
FORMS = (PRODUCT, SHIFT)
_SLACK = 1e-6
"""Weights that add up to 0 in decimals do so in floats up to rounding."""


@runtime_checkable
class Formed(Protocol):
    """A guide that is a language model, and says in which form it is weighed."""

    @property
    def form(self) -> str | None:
        """`product` or `shift`; None for one that an engine runs and that has none."""


def forms_of(guides: Mapping[str, object]) -> dict[str, str | None]:
    """Guide -> its form; None for a guide that has none."""
    return {name: guide.form if isinstance(guide, Formed) else None for name, guide in guides.items()}


def check_negative(
    weights: Mapping[str, float],
    forms: Mapping[str, str | None],
    *,
    temperature: float | None,
    plausibility: float | None,
) -> None:
    """Raise OptionError for a negative weight on a product where nothing makes up for the base that it cancels.

    `weights` are a request's, guide -> weight; `forms` says each guide's form (None, or no entry: it has none, and is
    not looked at). Accepted are a `plausibility` above 0, which keeps what is left among the base's own candidates
    (contrastive decoding), and weights of products with 1 + Σ w ≥ `temperature`, so that the mix is no flatter than
    the base (an expert against an anti-expert); 1 stands for a temperature of 0, of None (not known) and for any above
    1. `plausibility` None says that the engine has no such mask, and the error then does not name it.
    """
    products = {name: weight for name, weight in weights.items() if forms.get(name) == PRODUCT}
    negative = {name: weight for name, weight in products.items() if weight < 0}
    if not negative or plausibility:
        return
    least = min(temperature or 1.0, 1.0)
    if 1 + math.fsum(products.values()) >= least - _SLACK:
        return
    raise _refusal(negative, least, masked=plausibility is not None)


def _refusal(negative: Mapping[str, float], least: float, *, masked: bool) -> OptionError:
    name, weight = min(negative.items(), key=lambda item: item[1])
    ways = "To steer away from it, use it in the form shift ({form}), which takes its own base's share out"
    if masked:
        ways += "; or give the request a plausibility above 0 ({plausibility}), which keeps to the base's likely "
        ways += "tokens (as contrastive decoding does)"
    error = naming(
        OptionError,
        "Guide {0} is a product (base · guide^weight), and its weight is {1:g}: a negative one cancels the base that "
        "is inside the guide, so that noise is left. Accepted: weights of at least 0, or negative ones that other "
        f"products' positive weights make up for (1 + the sum of the products' weights at least {{2:g}}). {ways}.",
        *(name, weight, least),
    )
    return about("weights", error)
