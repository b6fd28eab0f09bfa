"""What vLLM is told of a request's sampling parameters; no vLLM is needed to say it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from trimtab.core import SamplingParams
from trimtab.decoding.requests import Request
from trimtab.engines.vllm.sampling import as_theirs, check_drafted, check_params
from trimtab.errors import OptionError
from trimtab.models.tabular import TabularModel

MODEL = TabularModel.random(9, seed=0, eos_ids=(0, 4))
NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": None,
    "min_tokens": 0,
    "seed": 3,
    "max_tokens": 20,
    "ignore_eos": True,
    "stop_token_ids": [0, 4],
}
"""What is told of a request that asks for nothing but a seed."""


def told(most: int = 20, **how: Any) -> dict[str, Any]:
    params = SamplingParams(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3, **how})
    return as_theirs(Request(0, [1], [1], {}, params, {}, most, MODEL))


@pytest.mark.parametrize(
    ("how", "changed"),
    [
        ({}, {}),
        ({"presence_penalty": 1}, {"presence_penalty": 1.0}),
        ({"frequency_penalty": -0.5}, {"frequency_penalty": -0.5}),
        ({"logit_bias": {3: 2}}, {"logit_bias": {3: 2.0}}),
        ({"min_tokens": 5}, {"min_tokens": 5}),
        ({"stop_token_ids": (7, 2)}, {"stop_token_ids": [0, 2, 4, 7]}),
        ({"ignore_eos": True}, {"stop_token_ids": []}),
        ({"ignore_eos": True, "stop_token_ids": (4,)}, {"stop_token_ids": [4]}),
        ({"top_k": 10**6}, {"top_k": 9}),
        ({"stop": ("a",)}, {}),  # looked for on this side
    ],
)
def test_each_parameter_is_told_under_vllms_name(how: dict[str, Any], changed: dict[str, Any]) -> None:
    assert told(**how) == {**NEUTRAL, **changed}


def test_a_least_length_gives_way_to_the_room_that_there_is() -> None:
    """vLLM refuses more tokens at least than at most."""
    assert told(4, min_tokens=7, max_new_tokens=9)["min_tokens"] == 4


def test_every_parameter_is_told_refused_or_this_sides_own() -> None:
    """A new field of `SamplingParams` has to be placed."""
    ours = {"weights", "stop", "trace", "num_alternatives", "forced", "constraint", "draft"}
    ours |= {"plausibility", "guide_plausibility", "gates"}
    renamed = {"max_new_tokens": "max_tokens"}
    for field in dataclasses.fields(SamplingParams):
        if field.name not in {*ours, "draft_tokens", "repetition_penalty"}:
            assert renamed.get(field.name, field.name) in NEUTRAL, field.name


CHANGING: list[dict[str, Any]] = [
    {"presence_penalty": 1.0},
    {"frequency_penalty": 1.0},
    {"logit_bias": {3: 1.0}},
    {"min_tokens": 2},
]


@pytest.mark.parametrize("how", CHANGING, ids=str)
def test_what_a_trace_or_a_draft_would_leave_out_is_refused(how: dict[str, Any]) -> None:
    (name,) = how
    check_params(SamplingParams(**how))
    with pytest.raises(OptionError, match=f"A trace inside vLLM .* does not count {name}"):
        check_params(SamplingParams(**how, trace=True))
    with pytest.raises(OptionError, match=f"speculative_config. leave {name} out of account"):
        check_drafted(SamplingParams(**how))
    check_drafted(SamplingParams())
