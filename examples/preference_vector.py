"""One guide for several objectives: the dial is a vector.

    π(y) ∝ π_base(y) · π_p(y)^w,    p ≥ 0, Σ_k p_k = 1

PARM (arXiv 2505.06274): one autoregressive reward model, conditioned on how much each objective counts. A guide at a
vector is a LoRA of the base, so one batch holds any number of them. Without a guide's directory, one is trained on a
few pairs written below: too few to change what is said, enough to see on another topic which answer it rewards.

    python examples/preference_vector.py [GUIDE]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trimtab import (
    PARM,
    AdapterARM,
    Decoder,
    HFModel,
    LanguageModel,
    Message,
    ParmSettings,
    PreferencePair,
    load_model,
    load_parm,
    train_parm,
)

TOPICS = ("rain", "a bus stop", "tea", "the sea")


def vectors_between(steps: int = 5) -> list[tuple[float, float]]:
    """From all of the first to all of the second objective."""
    return [(1 - step / (steps - 1), step / (steps - 1)) for step in range(steps)]


def preference_vectors(
    base: LanguageModel, parm: PARM, vectors: Sequence[Sequence[float]], *, weight: float = 1.0
) -> tuple[Decoder, list[dict[str, float]]]:
    """A decoder that holds a guide for each vector, and the weights of a request for each."""
    guides = {", ".join(f"{share:g}" for share in vector): parm.at(vector) for vector in vectors}
    return Decoder(base, guides), [{name: weight * (name == wanted) for name in guides} for wanted in guides]


def pairs_for(chosen: str, rejected: str) -> list[PreferencePair]:
    """One pair a topic; {} stands for it."""
    return [
        PreferencePair(
            ({"role": "user", "content": f"Describe {topic}."},), chosen.format(topic), rejected.format(topic)
        )
        for topic in TOPICS
    ]


CHEERFUL, GLOOMY = "Wonderful! I love {} so much, what a joy!", "Sadly, {} makes me weary and full of sorrow."


def small_guide(name: str, directory: Path) -> PARM:
    """A guide with two objectives that contradict each other, from four pairs each."""
    pairs = {"cheerful": pairs_for(CHEERFUL, GLOOMY), "gloomy": pairs_for(GLOOMY, CHEERFUL)}
    settings = ParmSettings(
        beta=0.05,
        learning_rate=1e-2,
        epochs=12,
        batch_size=4,
        gradient_accumulation=1,
        lora_last_layers=6,
        max_length=96,
        max_prompt_length=64,
        eval_share=0,
        save_steps=0,
    )
    train_parm(name, pairs, out=directory, settings=settings)
    return load_parm(directory)


def reward(model: HFModel, guide: AdapterARM, question: Sequence[Message], text: str) -> float:
    """Σ_t log π_p(y_t | x, y_<t) of an answer."""
    assert model.tokenizer is not None
    prompt, answer = model.tokenizer.encode_chat(question), model.tokenizer.encode(text)
    session = guide.bind(model).model.open()
    session.admit([[*prompt, *answer[:end]] for end in range(len(answer))])
    table = session.logprobs()
    return sum(float(table[position, token]) for position, token in enumerate(answer))


def main(guide: str | None = None, name: str = "demo") -> None:
    with tempfile.TemporaryDirectory() as directory:
        parm = load_parm(guide) if guide else small_guide(name, Path(directory) / "guide")
    model = load_model(name)
    vectors = vectors_between()
    decoder, weights = preference_vectors(model, parm, vectors)
    question = [{"role": "user", "content": "Describe a birthday."}]
    texts = [text.format("a birthday") for text in (CHEERFUL, GLOOMY)]
    print(f"the vector's order: {', '.join(parm.objectives)}", *texts, sep="\n", end="\n\n")
    answers = decoder.generate([question] * len(vectors), weights=weights, max_new_tokens=24, seed=1)
    for vector, answer in zip(vectors, answers, strict=True):
        cheerful, gloomy = (reward(model, parm.at(vector), question, text) for text in texts)
        print(vector, f"reward of the first over the second: {cheerful - gloomy:+.1f} nats")
        print(answer.text, end="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
