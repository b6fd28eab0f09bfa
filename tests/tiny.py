"""Tiny random models and tokenizers for tests: built in memory, nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers.pytorch_utils import Conv1D

VOCAB = 61
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SHAPE),
    "mistral": ("MistralConfig", {**_SHAPE, "sliding_window": 5, "head_dim": 8}),
    "qwen2": ("Qwen2Config", _SHAPE),
    "qwen3": ("Qwen3Config", {**_SHAPE, "head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {**_SHAPE, "head_dim": 8, "sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("Gemma3TextConfig", {**_SHAPE, "head_dim": 8, "sliding_window": 5, "num_hidden_layers": 7}),
    "gpt2": ("GPT2Config", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
}
FAMILIES = tuple(_FAMILIES)
_EXPERTS = {**_SHAPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_FLATTENED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_moe": ("Qwen2MoeConfig", {**_EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_EXPERTS, "head_dim": 8, "mlp_only_layers": [0]}),
    "mixtral": ("MixtralConfig", {**_SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "jetmoe": ("JetMoeConfig", {**_SHAPE, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "opt": (
        "OPTConfig",
        {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
    ),
}
FLATTENED = tuple(_FLATTENED)
"""Families that call some of their layers on [rows · tokens, width], or on tokens regrouped by expert."""


def tiny_module(family: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A random transformers model, float32, with weights large enough to make peaked distributions."""
    name, shape = {**_FAMILIES, **_FLATTENED}[family]
    config = getattr(transformers, name)(
        **{**shape, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **changes}
    )
    if getattr(config, "attn_logit_softcapping", None):
        config._attn_implementation = "eager"
    return peaked_module(config, seed=seed)


def peaked_module(config: Any, *, seed: int = 0) -> Any:
    """A random causal model of a config, with weights large enough to make peaked distributions."""
    torch.manual_seed(seed)
    module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.25)
    return module.eval()


def tiny_tokenizer(words: Sequence[str] | None = None, *, template: bool = True) -> Any:
    """A whole-word tokenizer: <s> is 0, </s> is 1, then words."""
    words = [f"w{index}" for index in range(VOCAB - 2)] if words is None else words
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    if template:
        tokenizer.chat_template = (
            "{{ '<s>' }}{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}"
            "{% if add_generation_prompt %}{{ ' w9' }}{% endif %}"
        )
    return tokenizer


BYTE_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def byte_tokenizer(*, template: str | None = BYTE_TEMPLATE, **options: Any) -> Any:
    """Every byte is a token, so that an emoji takes four: <pad> is 0, <s> is 1, </s> is 2."""
    specials = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate(specials + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **options
    )
    fast.chat_template = template
    return fast


def byte_llama(tokenizer: Any, *, max_length: int, seed: int = 0) -> Any:
    """A random model of a `byte_tokenizer`'s tokens."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        initializer_range=0.4,  # larger than usual, so that the tiny models have opinions
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config).eval()


def write_lora(directory: Path, module: nn.Module, *, rank: int = 2, seed: int = 0, **config: Any) -> Path:
    """A random adapter of a tiny model's linear layers, in peft's format."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in module.named_modules():
        if name == "lm_head" or not isinstance(layer, nn.Linear | Conv1D):
            continue
        num_out, num_in = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
        key = f"base_model.model.{name}.lora_"
        tensors[f"{key}A.weight"] = torch.randn(rank, num_in, generator=generator) * 0.2
        tensors[f"{key}B.weight"] = torch.randn(num_out, rank, generator=generator) * 0.2
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    names = sorted({key.split(".lora_")[0].rsplit(".", 1)[-1] for key in tensors})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 4,
        "target_modules": names,
        "bias": "none",
        "fan_in_fan_out": not isinstance(
            module.get_submodule(names and next(iter(tensors)).split("base_model.model.")[1].split(".lora_")[0]),
            nn.Linear,
        ),
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory
