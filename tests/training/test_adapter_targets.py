"""Training adapts what a guide can run and refuses the rest before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import peft

from tests.models.test_adapter_rows import Regrouped, Unreached, check_against_peft, with_feed_forward
from tests.tiny import FLATTENED, tiny_module
from trimtab.errors import OptionError
from trimtab.models.rewards.adapter import with_score_head
from trimtab.training.run.adapter_targets import adapter_config
from trimtab.training.run.settings import ArmSettings


def adapted(config: Any, module: Any) -> set[str]:
    """The names of the layers that peft adapts."""
    model = peft.get_peft_model(module, config)
    layers = (name for name, part in model.named_modules() if isinstance(part, peft.tuners.lora.LoraLayer))
    return {name.removeprefix("base_model.model.") for name in layers}


@pytest.mark.parametrize("family", ["llama", "gpt2", *FLATTENED])
def test_what_is_adapted_by_default_loads_and_is_pefts(family: str, tmp_path: Path) -> None:
    config = adapter_config(tiny_module(family), ArmSettings(lora_rank=3))
    model = peft.get_peft_model(tiny_module(family), config)
    with torch.no_grad():
        for number, (name, weight) in enumerate(model.named_parameters()):
            if "lora_" in name:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    model.save_pretrained(tmp_path)
    check_against_peft(tiny_module(family), model.eval(), tmp_path)


def test_the_model_and_its_random_numbers_are_left_alone() -> None:
    module = tiny_module("qwen3_moe")
    before = {name: id(part) for name, part in module.named_modules()}
    state = torch.get_rng_state()
    adapter_config(module, ArmSettings())
    assert {name: id(part) for name, part in module.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.device.type == "cpu" for weight in module.parameters())


def test_by_default_what_cannot_run_row_by_row_is_left_out() -> None:
    module = with_feed_forward(lambda: Regrouped(32, 3))
    names = adapted(adapter_config(module, ArmSettings()), module)
    assert {name.rsplit(".", 1)[-1] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_by_default_what_text_never_reaches_is_left_out() -> None:
    module = with_feed_forward(lambda: Unreached(32))
    names = adapted(adapter_config(module, ArmSettings()), module)
    assert "model.layers.0.mlp.inner" in names
    assert not any("picture" in name for name in names)


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "up_proj")])
def test_the_last_blocks(targets: tuple[str, ...]) -> None:
    names = adapted(adapter_config(tiny_module(), ArmSettings(lora_targets=targets, lora_last_layers=2)), tiny_module())
    assert {name.split(".")[2] for name in names} == {"1", "2"}
    assert len(names) == 2 * (7 if targets == ("all-linear",) else 2)


def test_a_reward_models_head_is_trained_whole() -> None:
    module = with_score_head(tiny_module(), torch.zeros(1, 32))
    config = adapter_config(module, ArmSettings(), task="SEQ_CLS", whole=["score"])
    assert not any("score" in name for name in adapted(config, module))
    with pytest.raises(OptionError, match="has no layer that is called score"):
        adapter_config(module, ArmSettings(lora_targets=("score",)), task="SEQ_CLS", whole=["score"])


REFUSED = {
    "a name of no layer beside one that there is": ("llama", ("q_proj", "foo"), "no layer that is called foo"),
    "all-linear beside another": ("llama", ("all-linear", "lm_head"), "no layer that is called all-linear"),
    "the embeddings": ("llama", ("q_proj", "embed_tokens"), "model.embed_tokens .* is of type Embedding"),
    "a norm": ("llama", ("norm",), "not supported"),
    "fused experts": ("qwen3_moe", ("q_proj", "mlp.experts"), "not supported"),
    "names of an older transformers": ("mixtral", ("q_proj", "w1", "w3"), "no layer that is called w1"),
    "names that peft takes for the experts'": ("qwen3_moe", ("gate_proj", "up_proj"), r"mlp\.gate_proj .* is not what"),
    "half of what peft fuses": ("qwen3_moe", ("q_proj", "gate_proj"), "without also targeting up_proj"),
    "a name that peft turns into another": ("qwen3_moe", ("q_proj", "mlp.gate"), "q_proj, mlp.gate: .*gate"),
    "a router": ("qwen2_moe", ("mlp.gate",), "mlp.gate"),
    "nothing in the last blocks": ("llama", ("layers.0.self_attn.q_proj",), "in the last 1 blocks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_guide_could_not_run_is_refused_by_name(name: str) -> None:
    family, targets, words = REFUSED[name]
    last = 1 if "last" in name else 0
    with pytest.raises(OptionError, match=words):
        adapter_config(tiny_module(family), ArmSettings(lora_targets=targets, lora_last_layers=last))


def test_regrouped_tokens_are_refused_by_name() -> None:
    module = with_feed_forward(lambda: Regrouped(32, 3))
    with pytest.raises(OptionError, match=r"mlp\.experts\.0 of LlamaForCausalLM is called on tokens"):
        adapter_config(module, ArmSettings(lora_targets=("q_proj", "experts.0")))


def test_the_output_head_may_be_named() -> None:
    names = adapted(adapter_config(tiny_module(), ArmSettings(lora_targets=("lm_head",))), tiny_module())
    assert names == {"lm_head"}
