"""A network that was run to find something out, or that carried an adapter, is afterwards as it was before."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_adapter_rows import PROMPTS, tuned
from tests.tiny import tiny_module
from trimtab.models.adapters.lora import LoRA
from trimtab.models.hf import HFModel
from trimtab.models.hooks import hooked


def num_hooks(module: Any) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def state(module: Any) -> dict[str, Any]:
    return {"config": module.config.to_dict(), **{key: value.clone() for key, value in module.state_dict().items()}}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def test_hooks_are_gone_after_an_error() -> None:
    module = tiny_module()

    def fail() -> None:
        with hooked((part, lambda *_: None) for part in module.modules()):
            assert num_hooks(module) > 0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert num_hooks(module) == 0


def test_a_model_that_was_probed_is_as_it_was() -> None:
    module = tiny_module()
    before = state(module)
    HFModel(module)
    assert num_hooks(module) == 0
    assert same(state(module), before)
    assert not module.training
    assert not any(weight.requires_grad for weight in module.parameters())


def test_the_last_adapter_of_a_layer_takes_its_hook_away(tmp_path: Path) -> None:
    tuned(tmp_path, tiny_module())
    module = tiny_module()
    before, model = state(module), HFModel(module)
    one, another = LoRA.load(tmp_path).on(model), LoRA.load(tmp_path).on(model)
    both = num_hooks(module)
    assert both == len(LoRA.load(tmp_path).pairs), "one hook a layer, however many adapters"
    plain = model.open()
    session = another.open(plain)
    for rows in (plain, session):
        rows.admit(PROMPTS)
    expected = session.logprobs()
    del one
    gc.collect()
    assert num_hooks(module) == both
    again = another.open()
    again.admit(PROMPTS)
    assert torch.allclose(again.logprobs(), expected, atol=1e-5)
    del another, session, again, plain, rows
    gc.collect()
    assert num_hooks(module) == 0
    assert same(state(module), before)
