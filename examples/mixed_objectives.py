"""Several objectives at once, each with a dial of its own.

    π(y) ∝ π_base(y) · Π_i π_i(y)^(w_i)

GenARM (arXiv 2410.08193) for several rewards: r = Σ w_i r_i. The dials belong to the request, so one batch can hold
every trade-off.

    python examples/mixed_objectives.py [MODEL]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from trimtab import ARM, Decoder, Guide, LanguageModel, load_guide, load_model

BRIEF = {"role": "system", "content": "Answer in one short sentence."}


def mixed_objectives(base: LanguageModel, objectives: Mapping[str, Guide]) -> Decoder:
    """A decoder whose requests weigh the objectives by name."""
    return Decoder(base, objectives)


def trade_offs(first: str, second: str, steps: int = 5) -> list[dict[str, float]]:
    """Weights from all of the first to all of the second objective; they add up to 1."""
    return [{first: 1 - step / (steps - 1), second: step / (steps - 1)} for step in range(steps)]


def main(name: str = "demo") -> None:
    model = load_model(name)
    # One objective is trained, the other is the model itself under an instruction.
    brief = ARM(model, prompt=lambda prompt: [BRIEF, *prompt])
    decoder = mixed_objectives(model, {"positive": load_guide("builtin:sentiment", form="product"), "brief": brief})
    dials = trade_offs("positive", "brief")
    question = [{"role": "user", "content": "Describe a rainy Monday morning."}]
    for answer in decoder.generate([question] * len(dials), weights=dials, max_new_tokens=48, seed=1):
        print(dict(answer.weights), answer.text, sep="\n", end="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
