"""Policies without a model: what they answer is a function of (prompt, strength, decoding, seed), as they must."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.answers import Alternative, Answer, TokenTrace
from trimtab.core import Prompt, SamplingParams
from trimtab.evaluation.comparison.recipe import MethodSpec, Recipe
from trimtab.evaluation.comparison.recipe_reader import KnownMethod, parse_recipe
from trimtab.methods.method import Strength
from trimtab.storage.scorers import Scorer

METHODS = {
    "base": KnownMethod((), (0.0,)),
    "genarm": KnownMethod(("guides",), (0.5, 1.0)),
    "best-of-n": KnownMethod(("scorer", "noise"), (4.0,)),
    "aligner": KnownMethod(("model",), (1.0,)),
}


def check(method: str, options: Mapping[str, Any], strengths: Sequence[Strength]) -> list[str]:
    """As `policies.methods.check_method`: one sentence for each problem."""
    problems = ["guides is missing; give {name: path}."] if method == "genarm" and "guides" not in options else []
    return problems + [f"strength {one} is below 0." for one in strengths if isinstance(one, float) and one < 0]


def _traced(num_tokens: int) -> tuple[TokenTrace, ...]:
    """Each token has −1.5 nats under the base."""
    chosen = Alternative(0, -1.5, {}, -1.0, 0, 0)
    return (TokenTrace(chosen, (), 0.0),) * num_tokens


class FakePolicy:
    """Says good more often the stronger it is."""

    def __init__(self, method: str, kl_kind: str = "exact") -> None:
        self._method = method
        self._kl_kind = kl_kind
        self.num_asked = 0
        self._num_read = 0

    @property
    def kl_kind(self) -> str:
        return self._kl_kind

    @property
    def num_tokens_read(self) -> int:
        return self._num_read

    def answer(
        self, prompts: Sequence[Prompt], strength: Strength, params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        for prompt, seed in zip(prompts, seeds, strict=True):
            self.num_asked += 1
            token_ids = self._tokens(prompt, strength, params, seed)
            self._num_read += 3 * len(token_ids)
            text = " ".join("good" if token == 1 else "bad" for token in token_ids)
            yield Answer(prompt, (7,), token_ids, text, "length", {}, seed, _traced(len(token_ids)))

    def _tokens(self, prompt: Prompt, strength: Strength, params: SamplingParams, seed: int) -> tuple[int, ...]:
        total = sum(strength) if isinstance(strength, tuple) else strength
        share = min(1.0, 0.3 + 0.25 * total) if self._method != "base" else 0.3
        draws = hashlib.sha256(f"{prompt}|{params.temperature}|{seed}".encode()).digest()
        return tuple(int(draw < 256 * share) for draw in draws[: min(params.max_new_tokens, 12)])

    def kl(self, answer: Answer, strength: Strength) -> float | None:
        if self._kl_kind == "unknown":
            return None
        total = sum(strength) if isinstance(strength, tuple) else strength
        return 0.5 * total * len(answer.token_ids) + 0.01 * sum(answer.token_ids)


KL_KINDS = {"best-of-n": "bound", "aligner": "unknown"}


def build(spec: MethodSpec) -> FakePolicy:
    return FakePolicy(spec.method, KL_KINDS.get(spec.method, "exact"))


def goodness(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [text.split().count("good") / max(1, len(text.split())) for text in texts]


def brevity(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return [
        -float(text.split().count("good")) + len(str(prompt)) % 3 for prompt, text in zip(prompts, texts, strict=True)
    ]


SCORERS = {
    "good": Scorer("good", "the share of good words, from 0 to 1", goodness),
    "brief": Scorer("brief", "how few good words", brevity),
}

PROMPTS = {
    "validation": [f"Validation prompt {index}?" for index in range(12)],
    "test": [[{"role": "user", "content": f"Test prompt {index}?"}] for index in range(14)],
}


def source(**changes: Any) -> dict[str, Any]:
    """A recipe as YAML gives it."""
    return {
        "title": "Good words",
        "model": "demo",
        "prompts": {"validation": {"builtin": "demo", "num": 12}, "test": {"builtin": "demo", "start": 12, "num": 14}},
        "decoding": {"max_new_tokens": 12, "temperature": 1.0},
        "seeds": [0, 1],
        "batch_size": 5,
        "rewards": {"good": {"scorer": "sentiment"}, "brief": {"scorer": "offence", "weight": -1, "role": "judged_by"}},
        "methods": [
            {"method": "base"},
            {"name": "arm", "method": "genarm", "guides": {"good": "builtin:sentiment"}, "strengths": [0.5, 1, 2]},
            {"method": "best-of-n", "scorer": "sentiment", "strengths": [2, 8], "max_prompts": 10},
            {"method": "aligner", "model": "demo"},
        ],
        **changes,
    }


def recipe(**changes: Any) -> Recipe:
    return parse_recipe(source(**changes), Path(), METHODS, check)


def pareto_source() -> dict[str, Any]:
    """Two objectives, two numbers a strength."""
    sweep = [[0.0, 2.0], [0.5, 0.5], [2.0, 0.0]]
    return source(
        objectives=["good", "brief"],
        reference={"good": 0.0, "brief": -13.0},
        rewards={"good": {"scorer": "sentiment"}, "brief": {"scorer": "offence", "weight": -1}},
        methods=[
            {"method": "base"},
            {"name": "two guides", "method": "genarm", "guides": {"a": "x", "b": "y"}, "strengths": sweep},
            {"method": "aligner", "model": "demo"},
            {"name": "runs", "method": "aligner", "model": "a", "strengths": [0, 1], "preferences": [[3, 1], [0, 2]]},
        ],
    )
