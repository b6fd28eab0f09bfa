"""Settings that nobody set follow those that somebody did."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from trimtab.errors import OptionError
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.dpo.settings import DpoSettings
from trimtab.training.parm.settings import ParmSettings
from trimtab.training.rl.settings import RLSettings
from trimtab.training.run.settings import ArmSettings

FOLLOWING: list[tuple[type[Any], dict[str, Any], dict[str, Any]]] = [
    (ArmSettings, {}, {"max_prompt_length": 512}),
    (ArmSettings, {"max_length": 160}, {"max_prompt_length": 80}),
    (ArmSettings, {"max_length": 160, "max_prompt_length": 159}, {"max_prompt_length": 159}),
    (DpoSettings, {"max_length": 160}, {"max_prompt_length": 80}),
    (ParmSettings, {"max_length": 9}, {"max_prompt_length": 4}),
    (ParmSettings, {}, {"preference_rank": 4}),
    (ParmSettings, {"lora_rank": 4}, {"preference_rank": 2}),
    (ParmSettings, {"lora_rank": 4, "preference_rank": 3}, {"preference_rank": 3}),
    (RLSettings, {}, {"gradient_accumulation": 2}),
    (RLSettings, {"num_generations": 3}, {"gradient_accumulation": 3}),
    (RLSettings, {"batch_size": 3}, {"gradient_accumulation": 4}),
    (RLSettings, {"num_generations": 64}, {"gradient_accumulation": 4}),
    (RLSettings, {"num_generations": 7, "batch_size": 1}, {"gradient_accumulation": 7}),
    (AgentSettings, {}, {"buffer_size": 1_000_000, "warmup_batches": 64}),
    (AgentSettings, {"batch_size": 32768}, {"buffer_size": 64 * 32768, "warmup_batches": 64}),
    (AgentSettings, {"warmup_batches": 2000}, {"buffer_size": 2_048_000, "warmup_batches": 2000}),
    (AgentSettings, {"buffer_size": 5000}, {"buffer_size": 5000, "warmup_batches": 4}),
    (AgentSettings, {"buffer_size": 5000, "batch_size": 8}, {"buffer_size": 5000, "warmup_batches": 64}),
]


@pytest.mark.parametrize(("kind", "given", "expected"), FOLLOWING)
def test_an_unset_setting_follows_those_that_are_set(
    kind: type[Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = kind(**given)
    assert {name: getattr(settings, name) for name in expected} == expected
    assert json.loads(json.dumps(dataclasses.asdict(settings)))[next(iter(expected))] == next(iter(expected.values()))


def test_it_follows_in_a_copy_too_and_what_was_set_does_not() -> None:
    copy = dataclasses.replace(ArmSettings(), max_length=160)
    assert copy.max_prompt_length == 80
    with pytest.raises(OptionError, match="leaves no room"):
        dataclasses.replace(ArmSettings(max_prompt_length=512), max_length=160)


REFUSED: list[tuple[type[Any], dict[str, Any], str]] = [
    (ArmSettings, {"max_length": 1}, "max_length is 1"),
    (ArmSettings, {"reference": "base"}, "form is product, and with reference base .* Give form shift"),
    (ArmSettings, {"reference": "base", "form": "shift", "through_mix": 1.0}, "through_mix is 1, and reference base"),
    (ArmSettings, {"reference": "other"}, "reference is 'other'"),
    (ArmSettings, {"through_mix": -1.0}, "through_mix is -1"),
    (ParmSettings, {"lora_rank": 1}, "lora_rank is 1"),
    (RLSettings, {"batch_size": 3, "gradient_accumulation": 2}, "num_generations"),
    (AgentSettings, {"buffer_size": 9}, "would never begin"),
    (AgentSettings, {"buffer_size": 9, "warmup_batches": 64}, "would never begin"),
    (ArmSettings, {"save_minutes": -1}, "save_minutes is -1"),
    (AgentSettings, {"save_minutes": float("nan")}, "save_minutes is nan"),
    (ArmSettings, {"form": "shifted"}, "form is 'shifted'; accepted: product, shift"),
    (ParmSettings, {"form": "shift"}, "steers as a product"),
]


@pytest.mark.parametrize(("kind", "given", "problem"), REFUSED)
def test_what_cannot_go_together_is_refused_by_name(kind: type[Any], given: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        kind(**given)


def test_the_paper_is_what_a_guide_steers_as_unless_told_otherwise() -> None:
    assert (ArmSettings().form, ArmSettings(form="shift").form) == ("product", "shift")
