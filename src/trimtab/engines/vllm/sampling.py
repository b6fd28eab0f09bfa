"""A request's sampling parameters as vLLM's own, and what vLLM cannot honour. Nothing here imports vLLM."""

from __future__ import annotations

from typing import Any

from trimtab.core import SamplingParams
from trimtab.decoding.requests import Request
from trimtab.errors import OptionError, naming
from trimtab.params import NO_DRAFT

LOWEST, HIGHEST = 0.01, 2.0
"""Between these a temperature means to vLLM what it says; below it rounds up, above it refuses."""
_CHANGING = ("presence_penalty", "frequency_penalty", "logit_bias", "min_tokens")
"""What vLLM does to the logits itself, behind the network in which guides are mixed."""


def as_theirs(request: Request) -> dict[str, Any]:
    """The fields of vLLM's `SamplingParams` that say how a request is sampled.

    Penalties, biases and least lengths are vLLM's, on the mixed logits, by the same formulas. vLLM is told of no end
    but `stop_token_ids`, so that `min_tokens` forbids exactly these; stop strings are looked for here.
    """
    params = request.params
    return {
        "temperature": params.temperature,
        "top_k": min(params.top_k or 0, request.vocab_size),
        "top_p": params.top_p,
        "min_p": params.min_p,
        "presence_penalty": float(params.presence_penalty),
        "frequency_penalty": float(params.frequency_penalty),
        "logit_bias": {token: float(bias) for token, bias in params.logit_bias.items()} or None,
        "min_tokens": min(params.min_tokens, request.max_new_tokens),
        "seed": request.seed,
        "max_tokens": request.max_new_tokens,
        "ignore_eos": True,
        "stop_token_ids": sorted(request.end_ids),
    }


def check_drafted(params: SamplingParams) -> None:
    """Raise OptionError for what an engine with vLLM's own drafts (`speculative_config`) cannot honour."""
    if params.trace:
        raise OptionError("Drafts leave no tables to explain a token by; leave speculative_config out, or `trace`.")
    if changed := _changed(params):
        raise naming(
            OptionError,
            f"vLLM's drafts (speculative_config) leave {{{changed[0]}}} out of account; leave one of them out."
            f"{_BUILT_IN}",
        )


def _changed(params: SamplingParams) -> list[str]:
    return [name for name in _CHANGING if getattr(params, name)]


def check_params(params: SamplingParams) -> None:
    """Raise OptionError for what vLLM cannot honour as the built-in engine does."""
    temperature = params.temperature
    if temperature is not None and temperature != 0 and not LOWEST <= temperature <= HIGHEST:
        raise OptionError(f"The temperature is {temperature:g}; vLLM takes 0 and {LOWEST:g} to {HIGHEST:g}.{_BUILT_IN}")
    if params.plausibility:
        raise naming(
            OptionError, f"{{plausibility}} masks the base before guides, which vLLM does not do; give 0.{_BUILT_IN}"
        )
    if any(params.guide_plausibility.values()):
        raise naming(
            OptionError,
            f"{{guide_plausibility}} masks by a guide's own probabilities, which vLLM does not do; leave it out."
            f"{_BUILT_IN}",
        )
    if params.gates:
        raise naming(
            OptionError, f"{{gates}} ask the base before a guide, which vLLM does not do; leave it out.{_BUILT_IN}"
        )
    if params.repetition_penalty != 1:
        raise naming(
            OptionError, f"vLLM's {{repetition_penalty}} is another formula than trimtab's; give 1.{_BUILT_IN}"
        )
    changed = _changed(params)
    if params.trace and changed:
        raise naming(
            OptionError,
            f"A trace inside vLLM (which log-probabilities are read off) does not count {{{changed[0]}}}, so its KL "
            f"would be another's. Leave one of them out.{_BUILT_IN}",
        )
    if params.draft != NO_DRAFT:
        raise naming(
            OptionError,
            f"vLLM has drafts of its own (speculative_config); give {{draft}} {NO_DRAFT}.{_BUILT_IN}",
        )
    if params.constraint is not None:
        raise OptionError(f"Constraints are not handed to vLLM here; leave the constraint out.{_BUILT_IN}")
    if params.forced:
        raise OptionError(f"vLLM takes no forced tokens; force none.{_BUILT_IN}")
    if params.min_p and params.top_p not in (None, 1.0):
        raise naming(
            OptionError,
            "{top_p} and {min_p} together keep other tokens in vLLM, which applies {min_p} first; give one."
            f"{_BUILT_IN}",
        )


_BUILT_IN = " The built-in engine takes it."
