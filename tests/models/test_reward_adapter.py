"""A head on a language model's own decoder, and an adapter merged below it: against transformers' and peft's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_module, tiny_tokenizer, write_lora
from trimtab.errors import BaseMismatchError, CheckpointError, CompatibilityError
from trimtab.models.hf import HFModel
from trimtab.models.rewards.adapter import merged_reward_module, with_score_head
from trimtab.models.rewards.stepwise import load_adapter_rewards

IDS = torch.tensor([[0, 5, 9, 11, 40]])
HEAD = torch.linspace(-1, 1, 32)[None]


def write_adapter(directory: Path, family: str) -> Path:
    """A random adapter of a tiny model with `HEAD`, as `trimtab train reward` writes it."""
    write_lora(directory, tiny_module(family), task_type="SEQ_CLS", modules_to_save=["score"])
    path = directory / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.score.weight": HEAD}, path)
    return directory


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_the_head_reads_the_last_state(family: str) -> None:
    causal = tiny_module(family)
    state = causal.base_model(input_ids=IDS).last_hidden_state[0, -1]
    found = with_score_head(causal, HEAD)(input_ids=IDS).logits
    torch.testing.assert_close(found, (HEAD @ state)[None], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])  # gpt2 keeps its weights as [in, out]
def test_merged_is_what_peft_gives(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    directory = write_adapter(tmp_path / "adapter", family)
    plain = with_score_head(tiny_module(family), torch.zeros(1, 32))
    theirs = peft.PeftModel.from_pretrained(plain, str(directory)).eval()
    ours = merged_reward_module(HFModel(tiny_module(family), tiny_tokenizer()), directory)
    with torch.no_grad():
        expected, found = theirs(input_ids=IDS).logits, ours(input_ids=IDS).logits
        bare = with_score_head(tiny_module(family), HEAD)(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, bare, atol=1e-2), "the adapter changes something"


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_as_rows_beside_the_base_s_it_gives_the_same(family: str, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", family)
    model = HFModel(tiny_module(family), tiny_tokenizer())
    plain, alone = model.open(), model.open()
    rewards = load_adapter_rewards(directory).on(model).open(plain)
    prompts = [IDS[0].tolist(), [7, 8], [9, 5, 4]]
    for session in (plain, alone, rewards):
        session.admit(prompts)
    merged = merged_reward_module(HFModel(tiny_module(family), tiny_tokenizer()), directory)
    with torch.no_grad():
        expected = torch.cat([merged(input_ids=torch.tensor([ids])).logits[0] for ids in prompts])
    torch.testing.assert_close(rewards.rewards(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain.logprobs(), alone.logprobs(), atol=1e-4, rtol=1e-4)


def test_nothing_is_merged_into_quantised_weights(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", "llama")
    base = HFModel(tiny_module(), tiny_tokenizer())
    layer = base.module.model.layers[0].self_attn.q_proj
    layer.weight = torch.nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(CompatibilityError, match="is quantised"):
        merged_reward_module(base, directory)


@pytest.mark.parametrize("key", ["use_dora", "init_lora_weights", "a_key_of_a_later_peft"])
def test_its_configuration_is_read_as_any_adapters(key: str, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", "llama")
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "pissa"}))
    with pytest.raises(CheckpointError, match=f"sets {key} to"):
        merged_reward_module(HFModel(tiny_module(), tiny_tokenizer()), directory)


def test_whole_modules_beside_the_head_are_refused(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", "llama")
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modules_to_save": ["score", "embed_tokens"]}))
    with pytest.raises(CheckpointError, match="embed_tokens"):
        merged_reward_module(HFModel(tiny_module(), tiny_tokenizer()), directory)


def test_a_head_of_another_width_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"The score head is \[1, 16\]"):
        with_score_head(tiny_module(), torch.zeros(1, 16))


def test_an_architecture_without_a_classifier_is_refused() -> None:
    import transformers

    config = transformers.CohereConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    module = transformers.CohereForCausalLM(config)
    with pytest.raises(CompatibilityError, match="no sequence-classification model"):
        with_score_head(module, torch.zeros(1, 32))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", "llama")
    base = HFModel(tiny_module("llama", intermediate_size=64), tiny_tokenizer())
    with pytest.raises(BaseMismatchError, match=r"expects .* to map"):
        merged_reward_module(base, directory)


def test_an_adapter_whose_head_was_never_saved_is_refused(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "adapter", "llama")
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": None}))
    with pytest.raises(CheckpointError, match="without a trained 'score'"):
        merged_reward_module(HFModel(tiny_module(), tiny_tokenizer()), directory)
