"""An adapter's configuration is read by what is known to be neutral; anything else that is set is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_module, write_lora
from trimtab.errors import CheckpointError
from trimtab.models.adapters import files as adapter_files
from trimtab.models.adapters.config import Targets, block_of, check_neutral
from trimtab.models.adapters.lora import LoRA

DEFAULTS = json.loads(json.dumps(peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear").to_dict()))


def test_every_default_of_peft_is_neutral() -> None:
    check_neutral(DEFAULTS, "it")


SET: dict[str, Any] = {
    "alora_invocation_tokens": [5],
    "arrow_config": {"top_k": 3},
    "bias": "lora_only",
    "ensure_weight_tying": True,
    "init_lora_weights": "pissa",
    "kasa_config": {"beta": 1.0},
    "layer_replication": [[0, 2], [1, 3]],
    "lora_bias": True,
    "megatron_config": {"hidden_size": 8},
    "modules_to_save": ["lm_head"],
    "monteclora_config": {"num_samples": 8},
    "target_parameters": ["experts.down_proj"],
    "trainable_token_indices": [1, 2],
    "use_bdlora": {"nblocks": 2},
    "use_dora": True,
    "use_qalora": True,
    "velora_config": {"num_groups": 2},
    "a_key_of_a_later_peft": {"strength": 2},
    "another_key_of_a_later_peft": 0,
}
"""Every key of peft's that changes what an adapter does, set."""

HARMLESS = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "inference_mode"),
    *("auto_mapping", "base_model_name_or_path", "peft_version", "revision", "task_type", "peft_type"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
}


def test_every_key_of_peft_is_either_harmless_or_tried_here() -> None:
    """A later version of peft may bring one: decide what it does, and add it to one of the two."""
    assert set(DEFAULTS) <= HARMLESS | set(SET)


@pytest.mark.parametrize("key", SET)
def test_what_is_set_is_refused_by_name(key: str, tmp_path: Path) -> None:
    directory = write_lora(tmp_path, tiny_module(), **{key: SET[key]})
    with pytest.raises(CheckpointError, match=rf"sets {key} to "):
        LoRA.load(directory)


@pytest.mark.parametrize(
    "value", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga", "of a later peft", 1, ["eva"]]
)
def test_initialisations_that_change_the_base_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="init_lora_weights"):
        LoRA.load(write_lora(tmp_path, tiny_module(), init_lora_weights=value))


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_a_later_key_that_is_empty_is_not_set(value: Any, tmp_path: Path) -> None:
    assert LoRA.load(write_lora(tmp_path, tiny_module(), a_key_of_a_later_peft=value)).pairs


BROKEN: dict[str, Any] = {
    "r": "many",
    "lora_alpha": float("nan"),
    "rank_pattern": [1],
    "alpha_pattern": {"(": 1},
    "layers_to_transform": "x",
}


@pytest.mark.parametrize("key", BROKEN)
def test_values_that_mean_nothing_are_a_sentence(key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not load as an adapter"):
        LoRA.load(write_lora(tmp_path, tiny_module(), **{key: BROKEN[key]}))


def test_a_configuration_that_is_no_mapping(tmp_path: Path) -> None:
    directory = write_lora(tmp_path, tiny_module())
    (directory / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no mapping"):
        LoRA.load(directory)


def test_a_rank_that_the_configuration_does_not_have_is_refused(tmp_path: Path) -> None:
    """Its scale would be another one."""
    with pytest.raises(CheckpointError, match=r"has rank 2, and .* says 4"):
        LoRA.load(write_lora(tmp_path, tiny_module(), rank=2, r=4))


def test_without_a_scale_it_is_pefts_default(tmp_path: Path) -> None:
    directory = write_lora(tmp_path, tiny_module(), rank=2)
    config = json.loads((directory / "adapter_config.json").read_text())
    before = adapter_files.read(directory)
    del config["lora_alpha"], config["r"]
    (directory / "adapter_config.json").write_text(json.dumps(config))
    name = next(iter(before))
    torch.testing.assert_close(adapter_files.read(directory)[name][1], before[name][1] * 2)  # 8 for 4


KEYS = {
    "model.embed_tokens.lora_embedding_A": "token embeddings",
    "model.layers.0.mlp.up_proj.lora_magnitude_vector": "DoRA",
    "model.layers.0.mlp.up_proj.lora_B.bias": "a bias in B",
    "model.layers.0.mlp.experts.base_layer.lora_A.weight": "bare parameters",
    "lm_head.weight": "not a LoRA weight",
}


@pytest.mark.parametrize("key", KEYS)
def test_other_weights_in_the_file_are_refused(key: str, tmp_path: Path) -> None:
    directory = write_lora(tmp_path, tiny_module())
    file = directory / "adapter_model.safetensors"
    save_file({**load_file(file), f"base_model.model.{key}": torch.ones(2, 3)}, file)
    with pytest.raises(CheckpointError, match=KEYS[key]):
        LoRA.load(directory)


def test_one_pair_under_two_names_is_refused(tmp_path: Path) -> None:
    directory = write_lora(tmp_path, tiny_module())
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("lora_A.weight"))
    save_file({**tensors, key.replace("lora_A.weight", "lora_A.other.weight"): tensors[key] + 1}, file)
    with pytest.raises(CheckpointError, match="twice"):
        LoRA.load(directory)


def test_an_adapter_of_a_convolution_is_refused(tmp_path: Path) -> None:
    directory = write_lora(tmp_path, tiny_module())
    file = directory / "adapter_model.safetensors"
    save_file({key: tensor[..., None] for key, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match="those of a linear layer"):
        LoRA.load(directory)


TARGETS: dict[str, dict[str, Any]] = {
    "endings": {"target_modules": ["q_proj", "mlp.up_proj"]},
    "one name in full": {"target_modules": ["model.layers.1.mlp.up_proj", "v_proj"], "layers_to_transform": 0},
    "blocks": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2]},
    "blocks of a list": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["layers"]},
    "left out": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.1.mlp.up_proj", "q_proj"]},
    "a pattern": {"target_modules": r".*\.[01]\..*(q_proj|up_proj)", "exclude_modules": r".*\.0\..*q_proj"},
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_layers_are_those_that_peft_adapts(name: str, tmp_path: Path) -> None:
    options = TARGETS[name]
    model = peft.get_peft_model(tiny_module(), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    model.save_pretrained(tmp_path)
    files = adapter_files.read_files(tmp_path)
    assert files.targets is not None
    found = {part for part, _ in tiny_module().named_modules() if files.targets.match(part)}
    assert found == set(files.pairs)
    assert found


@pytest.mark.parametrize(
    ("name", "patterns", "number"),
    [
        ("model.layers.12.mlp.experts.3.up", (), 12),
        ("transformer.h.4.attn", (), 4),
        ("lm_head", (), None),
        ("model.encoder.layers.3.decoder.layers.5.x", ("decoder.layers",), 5),
        ("layers.7.x", ("layers",), 7),
    ],
)
def test_the_number_of_a_block(name: str, patterns: tuple[str, ...], number: int | None) -> None:
    assert block_of(name, patterns) == number


def test_a_name_that_merely_ends_alike_is_another() -> None:
    assert not Targets(frozenset({"proj"})).match("model.layers.0.q_proj")
    assert Targets(frozenset({"q_proj"})).match("model.layers.0.q_proj")
