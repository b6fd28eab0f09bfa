"""Classifier-free guidance: away from what the model would say under another prompt.

    π(y) ∝ π(y | negative) · (π(y | prompt) / π(y | negative))^γ

Sanchez et al., "Stay on topic with Classifier-Free Guidance" (arXiv 2306.17806). γ = 1 is the model as it is; more
leaves the negative prompt behind. As π^γ · π_negative^(1−γ) is (π · π_negative^((1−γ)/γ))^γ, one guide at weight
(1−γ)/γ and a temperature of 1/γ do it, without running the model a third time.

    python examples/negative_prompt.py [GAMMA]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from trimtab import ARM, Decoder, LanguageModel, Prompt, load_model

SAD = {"role": "system", "content": "You are gloomy and see the worst in everything."}


def negative_prompt(
    model: LanguageModel, rewrite: Prompt | Callable[[Prompt], Prompt], *, strength: float, temperature: float = 1.0
) -> tuple[Decoder, dict[str, Any]]:
    """A decoder and the options of `generate`; `rewrite` is the negative prompt, or makes it from the prompt."""
    options = {"weights": {"negative": (1 - strength) / strength}, "temperature": temperature / strength}
    return Decoder(model, {"negative": ARM(model, prompt=rewrite)}), options


def main(strength: str = "1.5") -> None:
    decoder, options = negative_prompt(load_model("demo"), lambda prompt: [SAD, *prompt], strength=float(strength))
    question = [{"role": "user", "content": "Describe a rainy Monday morning."}]
    for answer in decoder.generate([question], **options, max_new_tokens=48, seed=1):
        print(answer.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
