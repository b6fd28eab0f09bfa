"""Alignment-Aware Decoding: what training changed decides, among the tokens that the tuned policy itself finds likely.

AAD (arXiv 2509.26169, ICML 2026) is greedy: the token with the largest log d(y) − log s(y) of those with d(y) ≥ α · max
d, where d is a tuned policy, s the model that it was tuned from, and α 0.1. Here it is a shift with a mask by the
guide's own probabilities, and the strength is its weight: π ∝ π_base · (d / s)^w on that set. At 1, if the base is s,
it is d on its likely tokens; the paper's rule is the end of the dial, which a weight of some thousands reaches at
temperature 0.

Where it differs: every strength and temperature, where the paper is greedy and has no base beside d and s; what is
steered may be a larger model than s of the same vocabulary. The KL to the base is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trimtab.core import SamplingParams
from trimtab.engines.maker import EngineMaker
from trimtab.methods.builders import GUIDE, one_guide, tuned
from trimtab.methods.method import Policy


def build(engines: EngineMaker, options: Mapping[str, Any]) -> Policy:
    """A tuned policy, or any guide that is a language model, as a shift that is masked by its own probabilities."""

    def masked(params: SamplingParams) -> SamplingParams:
        return replace(params, guide_plausibility={GUIDE: options["alpha"]})

    return one_guide(engines, tuned(options["path"], options), ask=masked)
