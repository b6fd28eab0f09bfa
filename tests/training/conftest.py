"""Tiny models on disk and preferences that they can learn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.models.hf import HFTokenizer, load_pretrained
from trimtab.training.pairs.formats import PreferencePair

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<end>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
"""Opens with a BOS of its own and puts a line break after the token that ends a turn."""

SPECIALS = ("<pad>", "<s>", "</s>", "<end>", "<u>", "<a>")


def byte_tokenizer() -> Any:
    """One token a byte; a BOS before raw text, as Llama's tokenizers have it; pad is not eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def save_model(
    directory: Path, kind: str = "llama", *, seed: int = 0, template: str | None = TEMPLATE, **changes: Any
) -> str:
    """A random model of one of transformers' families with `byte_tokenizer`."""
    import transformers

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": 0,
        **changes,
    }
    torch.manual_seed(seed)
    if kind == "gemma2":
        config = transformers.Gemma2Config(**sizes, final_logit_softcapping=2.0, sliding_window=16)
        model = transformers.Gemma2ForCausalLM(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(byte_tokenizer())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama of two blocks."""
    return save_model(tmp_path_factory.mktemp("training") / "tiny")


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Gemma 2 with soft caps on its logits and a sliding window."""
    return save_model(tmp_path_factory.mktemp("training") / "gemma", "gemma2")


@pytest.fixture(scope="session")
def host() -> Callable[[str], Any]:
    """A model as `load_model` gives it."""

    def load(directory: str) -> Any:
        return load_pretrained(
            Path(directory),
            name=directory,
            dtype="float32",
            device="cpu",
            device_map=None,
            quantize=None,
            quantization_config=None,
            attn_implementation=None,
            trust_remote_code=False,
        )

    return load


def vowel_pairs(count: int, *, seed: int = 0) -> list[PreferencePair]:
    """Answers of vowels are preferred to answers of consonants; lengths say nothing."""
    rng = random.Random(seed)
    return [
        PreferencePair(
            ({"role": "user", "content": f"say {rng.randrange(10**6)}"},),
            "".join(rng.choices("aeiou", k=rng.randint(6, 10))),
            "".join(rng.choices("bcdfg", k=rng.randint(6, 10))),
        )
        for _ in range(count)
    ]


def write_rows(path: Path, rows: Sequence[Any]) -> str:
    """A .jsonl file; text is written as it stands."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)
