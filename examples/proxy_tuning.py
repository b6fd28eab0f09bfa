"""Proxy tuning: what tuning did to a small model, done to a large one.

    π(y) ∝ π_base(y) · (π_expert(y) / π_anti(y))^w

Liu et al., "Tuning Language Models by Proxy" (arXiv 2401.08565), where w = 1: the expert is a small tuned model, the
anti-expert the same model before tuning.

    python examples/proxy_tuning.py [BASE EXPERT ANTI_EXPERT]

Without arguments, the tuned model is the demo model with the guide that ships, and base and anti-expert are the demo
model itself.
"""

from __future__ import annotations

import sys

from trimtab import ARM, Decoder, LanguageModel, load_guide, load_model


def proxy_tuning(
    base: LanguageModel, expert: LanguageModel, anti_expert: LanguageModel, *, strength: float = 1.0
) -> tuple[Decoder, dict[str, float]]:
    """A decoder and the weights that make it a proxy-tuned model."""
    decoder = Decoder(base, {"expert": ARM(expert), "anti-expert": ARM(anti_expert)})
    return decoder, {"expert": strength, "anti-expert": -strength}


def main(*names: str) -> None:
    if names:
        base, expert, anti_expert = (load_model(name) for name in names)
    else:
        base = anti_expert = load_model("demo")
        expert = load_guide("builtin:sentiment").bind(base).model
    decoder, weights = proxy_tuning(base, expert, anti_expert)
    question = [{"role": "user", "content": "Describe a rainy Monday morning."}]
    for answer in decoder.generate([question], weights=weights, max_new_tokens=48, seed=1):
        print(answer.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
