"""Every guide keeps every law, on every model it can steer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.laws.tiny_models import FAMILIES, PROMPTS, tiny_model
from trimtab.core import Guide
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.mixing.forms import SHIFT
from trimtab.models.adapters.lora import LoRA
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.testing import check_guide

BASE = TabularModel.random(6, seed=0)
TABULAR: dict[str, Guide] = {
    "another model": ARM(TabularModel.random(6, seed=1)),
    "the base itself": ARM(BASE),
    "a prompt of its own": ARM(TabularModel.random(6, seed=2), prompt=[3, 1, 4]),
    "a prompt from the prompt": ARM(BASE, weight=-0.5, prompt=lambda prompt: [5, *prompt][:2]),
    "a shift from the base": ARM(TabularModel.random(6, seed=4), form=SHIFT),
    "a shift from another model": ARM(
        TabularModel.random(6, seed=4), form=SHIFT, reference=TabularModel.random(6, seed=5)
    ),
    "a shift under a prompt of its own": ARM(BASE, weight=-0.5, prompt=[3, 1, 4], form=SHIFT, reference=BASE),
    "a shift from a model that vetoes": ARM(
        TabularModel.random(6, seed=4),
        form=SHIFT,
        reference=TabularModel.of_table(torch.zeros(6, 6).masked_fill(torch.eye(6) == 1, -torch.inf)),
    ),
    "vetoes": ARM(TabularModel.of_table(torch.zeros(6, 6).masked_fill(torch.eye(6) == 1, -torch.inf))),
    "a short memory": ARM(TabularModel.random(6, seed=3, max_length=12)),
}


def random_lora(model: HFModel, seed: int, targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj")) -> LoRA:
    """An adapter that changes every layer noticeably; all of its weights are random."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    pairs = {
        name: (normal(4, module.in_features), normal(module.out_features, 4))
        for name, module in model.module.named_modules()
        if name.rsplit(".", 1)[-1] in targets
    }
    return LoRA(pairs, base={}, vocabulary={})


@pytest.mark.parametrize("name", TABULAR)
def test_arms_of_tabular_models(name: str) -> None:
    check_guide(TABULAR[name], BASE)


def test_an_arm_of_another_transformers_model() -> None:
    check_guide(ARM(tiny_model("gemma2")), tiny_model("mistral"), PROMPTS, num_steps=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_under_another_prompt(family: str) -> None:
    """It shares the base's forward passes."""
    model = tiny_model(family)
    check_guide(ARM(model, prompt=lambda prompt: [11, 7, *prompt]), model, PROMPTS, num_steps=3)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_adapters_of_the_base(family: str) -> None:
    """A LoRA guide rides in the base's batch, each row with its own adapter or none."""
    model = tiny_model(family)
    check_guide(AdapterARM(random_lora(model, seed=5)), model, PROMPTS, num_steps=3)


def test_an_adapter_is_not_the_base() -> None:
    """Otherwise the laws above would hold for an adapter that is never applied."""
    model = tiny_model("llama")
    base = model.open()
    adapted = [random_lora(model, seed).on(model).open(base) for seed in (5, 6)]
    for session in (base, *adapted):
        session.admit(PROMPTS)
    tables = [session.logprobs() for session in (base, *adapted)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert ((tables[one] - tables[other]).abs().amax(1) > 0.1).all()
