"""Decoding-time realignment: how strongly a model was aligned, chosen after training.

    π(y) ∝ π_reference(y)^(1−λ) · π_aligned(y)^λ

Liu et al., "Decoding-time Realignment of Language Models" (arXiv 2402.02992). λ = 0 is the reference, 1 the aligned
model, 0.5 what training with twice the KL penalty would give, 2 with half of it. Here the aligned model is the demo
model with the sentiment guide that ships, read as a model.

    python examples/realignment.py [LAMBDA ...]
"""

from __future__ import annotations

import sys

from trimtab import ARM, Decoder, Guide, LanguageModel, load_guide, load_model


def realignment(reference: LanguageModel, aligned: Guide) -> Decoder:
    """A decoder on the reference model, to be run with `weights_for`."""
    return Decoder(reference, {"aligned": aligned, "reference": ARM(reference)})


def weights_for(strength: float) -> dict[str, float]:
    """Weights for a λ: the base stands for the reference once, so λ of it has to go."""
    return {"aligned": strength, "reference": -strength}


def main(*strengths: str) -> None:
    model = load_model("demo")
    decoder = realignment(model, load_guide("builtin:sentiment", form="product"))
    weights = [weights_for(float(strength)) for strength in strengths or ("0", "0.5", "1", "2")]
    question = [{"role": "user", "content": "Describe a rainy Monday morning."}]
    for answer in decoder.generate([question] * len(weights), weights=weights, max_new_tokens=48, seed=1):
        print(f"lambda {answer.weights['aligned']:g}: {answer.text}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
