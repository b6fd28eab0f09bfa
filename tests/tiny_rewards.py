"""Tiny random reward models for tests: one that reads the last token, and one that is an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.processors import TemplateProcessing

from tests.tiny import VOCAB, tiny_tokenizer
from trimtab.models.rewards.whole import RewardModel

_SHAPE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 2, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}),
    "mistral": (
        "MistralConfig",
        {"num_key_value_heads": 2, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1, "sliding_window": 5},
    ),
    "bert": ("BertConfig", {"pad_token_id": 2}),
    "roberta": ("RobertaConfig", {"pad_token_id": 2}),
    "phi3": (
        "Phi3Config",
        {
            "num_key_value_heads": 2,
            "eos_token_id": 1,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "original_max_position_embeddings": 16,
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0, 3.0, 4.0, 8.0],
            },
        },
    ),
    "ctrl": ("CTRLConfig", {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "pad_token_id": 1}),
}


def tiny_reward_module(family: str = "llama", *, num_labels: int = 1, seed: int = 0, **changes: Any) -> Any:
    """A random float32 sequence-classification model, whose states are large enough to differ by much."""
    name, shape = _CONFIGS[family]
    options = {**_SHAPE, "intermediate_size": 48, "max_position_embeddings": 64, **shape, **changes}
    config = getattr(transformers, name)(num_labels=num_labels, **options)
    torch.manual_seed(seed)
    module = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.25)
    return module.eval()


def tiny_encoder_tokenizer() -> Any:
    """Whole words between <s> and </s>, padded with w0 (id 2), without a chat template."""
    tokenizer = tiny_tokenizer(template=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.pad_token = "w0"
    return tokenizer


def tiny_reward_model(family: str = "llama", **changes: Any) -> RewardModel:
    """A tiny reward model with a tokenizer of its kind."""
    tokenizer = tiny_encoder_tokenizer() if family in ("bert", "roberta") else tiny_tokenizer()
    return RewardModel(tiny_reward_module(family), tokenizer, **changes)


def write_reward_model(directory: Path, family: str = "llama", **changes: Any) -> Path:
    """A tiny reward model's directory, as save_pretrained writes it."""
    tiny_reward_module(family, **changes).save_pretrained(directory)
    (tiny_encoder_tokenizer() if family in ("bert", "roberta") else tiny_tokenizer()).save_pretrained(directory)
    return directory
