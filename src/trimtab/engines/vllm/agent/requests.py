"""What a request may ask of an agent's engine. vLLM calls it in the front end; an error there is the request's alone.

vLLM itself refuses, as for a diffusion model, another temperature than 1, seeds, min_p, grammars, and lists of allowed
or bad tokens. Guides' names are checked where weights are read (`admission`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from trimtab.engines.vllm.admission import GUIDANCE
from trimtab.engines.vllm.agent.settings import MOST_CANDIDATES
from trimtab.errors import OptionError
from trimtab.mixing.rules import FirstAccepted

NEUTRAL: Mapping[str, object] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": None,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "logprob_token_ids": None,
    "prompt_logprob_token_ids": None,
}
"""Parameters that have no effect in an agent's engine -> the only value they may have."""


class AgentRequests(LogitsProcessor):  # type: ignore[misc]
    """Refuses what an agent cannot honour; changes no logits."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise OptionError, which is a ValueError, for a request that cannot be answered as it asks."""
        for name, neutral in NEUTRAL.items():
            value = getattr(sampling_params, name, neutral)
            if value != neutral:
                raise OptionError(
                    f"{name} is {value!r}; an accept-reject agent in vLLM cannot honour it. Leave it out, or use the "
                    "built-in engine."
                )
        if sampling_params.top_k > MOST_CANDIDATES:
            raise OptionError(
                f"top_k is {sampling_params.top_k}; each candidate costs an agent a step in vLLM. Give at most "
                f"{MOST_CANDIDATES}; left out it is the agent's own."
            )
        for weight in _weights(sampling_params.extra_args):
            FirstAccepted().check_weight(weight)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return False

    def apply(self, logits: Any, ctx: Any) -> Any:
        return logits


def neutralise(sampling_params: Any) -> None:
    """For workers: let a request that the front end should have refused run without what nobody can honour.

    vLLM asserts that prompts' log-probabilities come with a token; here they would come before one, and end the engine.
    """
    for name, neutral in NEUTRAL.items():
        if getattr(sampling_params, name, neutral) != neutral:
            setattr(sampling_params, name, neutral)


def _weights(extra_args: Mapping[str, Any] | None) -> list[float]:
    """The numbers among the weights; what cannot be read is `admission`'s to refuse."""
    try:
        asked = json.loads((extra_args or {})[GUIDANCE])
        return [float(weight) for weight in asked.values() if isinstance(weight, int | float)]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return []
