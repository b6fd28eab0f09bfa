"""Guides inside transformers' own `generate`: a logits processor that keeps each guide's cache.

python examples/transformers_generate.py [WEIGHT ...]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch

from trimtab import GuidanceProcessor, Guide, HFModel, load_guide, load_model


def generate(
    model: HFModel,
    guides: Mapping[str, Guide],
    texts: Sequence[str],
    *,
    weights: Mapping[str, float],
    max_new_tokens: int,
) -> list[str]:
    """Greedy continuations of a left-padded batch."""
    tokenizer = model.tokenizer.hf
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="left")
    processor = GuidanceProcessor(model, guides, weights=weights, attention_mask=batch["attention_mask"])
    with torch.inference_mode():
        ids = model.module.generate(
            **batch, logits_processor=[processor], do_sample=False, max_new_tokens=max_new_tokens
        )
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def main(*weights: str) -> None:
    model = load_model("demo")
    guides = {"positive": load_guide("builtin:sentiment")}
    for weight in weights or ("0", "1"):
        texts = ["The food in this restaurant is", "My week was"]
        for text in generate(model, guides, texts, weights={"positive": float(weight)}, max_new_tokens=24):
            print(f"{weight}: {text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
