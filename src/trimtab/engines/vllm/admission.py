"""A request's weights: read from `vllm_xargs`, refused in the front end where they are wrong, never in a worker."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from trimtab.errors import OptionError, unknown_name
from trimtab.mixing.forms import check_negative

log = logging.getLogger(__name__)

GUIDANCE = "guidance"
"""The key of `vllm_xargs` (`SamplingParams.extra_args`) that holds the weights, as JSON: '{"helpful": 1.0}'."""
_THEIRS = ("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode")
"""What vLLM itself puts there."""
_FORM = """give JSON in a text, such as "vllm_xargs": {"guidance": "{\\"helpful\\": 1.0}"}"""


def read_weights(extra_args: Mapping[str, Any] | None, defaults: Mapping[str, float]) -> dict[str, float]:
    """Guide -> weight: the request's, and the defaults of the guides that it does not name.

    Raises OptionError for an unknown key or guide, and for what is not a finite number.
    """
    extra_args = extra_args or {}
    for key in extra_args:
        if key not in (GUIDANCE, *_THEIRS):
            raise unknown_name("key of vllm_xargs", str(key), (GUIDANCE,))
    given = extra_args.get(GUIDANCE)
    if given is None:
        return dict(defaults)
    asked = _parsed(given)
    for name, weight in asked.items():
        if name not in defaults:
            raise unknown_name("guide", name, defaults)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not _is_float32(weight):
            raise OptionError(f"The weight of guide {name} is {weight!r}; give a finite number.")
    return {**defaults, **{name: float(weight) for name, weight in asked.items()}}


def check_weights(
    extra_args: Mapping[str, Any] | None,
    defaults: Mapping[str, float],
    forms: Mapping[str, str | None],
    temperature: float | None,
) -> None:
    """Raise OptionError for what `read_weights` refuses, and for negative weights that cancel the base in a product.

    For the front end, which knows the guides' forms and the request's temperature (`forms.check_negative`).
    """
    # vLLM has no mask that would keep to the base's own candidates.
    check_negative(read_weights(extra_args, defaults), forms, temperature=temperature, plausibility=None)


def row_of(extra_args: Mapping[str, Any] | None, defaults: Mapping[str, float]) -> list[float]:
    """The weights in the order of the guides. For workers: what cannot be read gives the defaults and a line of log,
    because an error there would end the engine for everybody; the front end has refused it before.
    """
    try:
        return list(read_weights(extra_args, defaults).values())
    except OptionError:
        log.exception("a request with unreadable weights has reached a worker; it runs at the default weights")
        return list(defaults.values())


def as_extra_args(weights: Mapping[str, float]) -> dict[str, str]:
    """`vllm_xargs` for these weights."""
    return {GUIDANCE: json.dumps(dict(weights))}


def _parsed(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, str):
        raise OptionError(f"guidance is {given!r}; {_FORM}.")
    try:
        asked = json.loads(given)
    except (ValueError, RecursionError) as error:  # the latter for brackets in thousands
        raise OptionError(f"guidance is {_short(given)}, which is no JSON ({error}); {_FORM}.") from None
    if not isinstance(asked, Mapping):
        raise OptionError(f"guidance is {_short(given)}; {_FORM}.")
    return asked


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def _is_float32(weight: float) -> bool:
    try:
        return math.isfinite(weight) and abs(weight) <= 3.4e38
    except OverflowError:  # a whole number beyond any float
        return False
