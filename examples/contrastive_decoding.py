"""Contrastive decoding: what a good model knows and a poor one does not.

    argmax over y of  log π_base(y) − log π_amateur(y),  among y with π_base(y) ≥ α · max π_base

Li et al., "Contrastive Decoding" (arXiv 2210.15097), with their α = 0.1. The amateur is a smaller model, or, as here
where no second model is given, the same model that sees nothing but the end of the prompt.

    python examples/contrastive_decoding.py [MODEL [AMATEUR]]
"""

from __future__ import annotations

import sys
from typing import Any

from trimtab import ARM, Decoder, Guide, LanguageModel, Prompt, load_model


def contrastive_decoding(
    base: LanguageModel, amateur: Guide, *, plausibility: float = 0.1
) -> tuple[Decoder, dict[str, Any]]:
    """A decoder and the options of `generate` that make it contrastive."""
    return Decoder(base, {"amateur": amateur}), {"weights": {"amateur": -1.0}, "plausibility": plausibility}


def end_of(prompt: Prompt) -> str:
    """The last word of a text."""
    return str(prompt).split()[-1]


def main(name: str = "demo", amateur: str | None = None) -> None:
    model = load_model(name)
    guide = ARM(model, prompt=end_of) if amateur is None else ARM(load_model(amateur))
    decoder, options = contrastive_decoding(model, guide)
    for answer in decoder.generate(["The capital of France is"], **options, max_new_tokens=32, temperature=0):
        print(answer.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
