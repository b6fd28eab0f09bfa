"""docs/serving/scaling.md gives the numbers of recipes/scaling.py, whose formulas count what models and agents hold."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.tiny import tiny_module
from trimtab.guides.agent import AgentNetwork


@pytest.fixture(scope="module")
def recipe(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", repository / "recipes" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # a dataclass looks up its module
    spec.loader.exec_module(module)
    return module


def test_every_table_of_the_page_is_the_recipe_s(recipe: ModuleType, repository: Path) -> None:
    page = (repository / "docs" / "serving" / "scaling.md").read_text(encoding="utf-8")
    assert [name for name, make in recipe.TABLES.items() if make() not in page] == []


def test_the_prose_of_the_page_gives_numbers_of_its_tables(recipe: ModuleType, repository: Path) -> None:
    """Between the marks of what is computed, no number with a unit stands that no table or constant has."""
    page = (repository / "docs" / "serving" / "scaling.md").read_text(encoding="utf-8")
    prose = "\n".join(line for line in page.splitlines() if not line.startswith("|"))
    peaks = f"{recipe.GPU_BANDWIDTH / 1e12:g} TB/s {recipe.GPU_FLOPS / 1e12:g} TFLOP/s"
    tables = " ".join([*(make() for make in recipe.TABLES.values()), f"{recipe.GPU_BYTES / 1e9:g} GB", peaks])
    given = re.findall(r"\d[\d,.]* (?:GB|MB|TB/s|TFLOP/s|ms)\b", prose)
    assert given
    assert [number for number in given if number not in tables and number not in _EXAMPLES] == []


_EXAMPLES = {"1 GB"}
"""What is no result: units that are explained."""


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 4)])
def test_the_shape_counts_what_a_llama_holds(recipe: ModuleType, heads: int, kv_heads: int) -> None:
    from peft import LoraConfig, get_peft_model

    module = tiny_module(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=8, tie_word_embeddings=False)
    config = module.config
    inner, vocab_size = config.intermediate_size, config.vocab_size
    shape = recipe.Shape("", config.num_hidden_layers, config.hidden_size, heads, kv_heads, inner, vocab_size)
    assert shape.params == sum(weight.numel() for weight in module.parameters())
    output = module(torch.tensor([[2, 3, 4]]), use_cache=True)
    cache = output.cache if "cache" in output else output.past_key_values  # transformers 5.24 renamed it
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert 3 * shape.kv_bytes == 2 * numbers
    adapted = get_peft_model(module, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert shape.lora_params(4) == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def test_the_recipe_counts_an_agent_s_weights(recipe: ModuleType) -> None:
    network = AgentNetwork(64, 1024)
    assert recipe.agent_params(64) == sum(weight.numel() for weight in network.parameters())
