"""Tiny random GGUF files in float32, written from transformers' modules: nothing is rounded, so laws hold tightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers
from tokenizers import pre_tokenizers

from tests.tiny import peaked_module

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
TOKENS = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "ĊĊ"]
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
_SHAPE = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def gguf_module(family: str = "Llama", *, seed: int = 0, **changes: Any) -> Any:
    """A random transformers model that `write_gguf` can write; `family` is `Llama`, `Qwen2` or `Qwen3`."""
    shape = {**_SHAPE, "tie_word_embeddings": False, **({"head_dim": 8} if family == "Qwen3" else {}), **changes}
    return peaked_module(getattr(transformers, f"{family}Config")(**shape), seed=seed)


def write_gguf(path: Path, module: Any, *, pre: str = "gpt-2") -> Path:
    """A module as a GGUF file in float32, with a vocabulary of bytes; `pre` says how it asks for text to be cut."""
    config = module.config
    architecture = _ARCHITECTURES[type(module).__name__]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    if architecture == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    else:
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    _add_vocabulary(writer, config.vocab_size, pre)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, weight in module.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        of_rows = heads.get(name.split(".")[-2]) if architecture == "llama" else None
        values = weight.numpy() if of_rows is None else permuted(weight.numpy(), of_rows)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(rows: Any, num_heads: int) -> Any:
    """Rows of q or k as llama.cpp has them: the halves of each head interleaved."""
    return rows.reshape(num_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int, pre: str) -> None:
    tokens = [*TOKENS, *(f"[PAD{index}]" for index in range(len(TOKENS), size))]
    special = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    unused = [gguf.TokenType.UNUSED] * (size - len(TOKENS))
    writer.add_token_types([*[special] * 3, *[gguf.TokenType.NORMAL] * (len(TOKENS) - 3), *unused])
    writer.add_token_merges(["a b", "Ċ Ċ"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
