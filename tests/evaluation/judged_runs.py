"""A run of a comparison with made-up answers, for tests of what comes after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trimtab.evaluation.comparison.records import Key, Row


def row(method: str, index: int, text: str, *, strength: float = 1.0, seed: int = 0, split: str = "test") -> Row:
    return Row(
        Key(method, strength, seed, split, index),
        [{"role": "user", "content": f"question {index}"}],
        text,
        (1, 2),
        "eos",
        {"length": float(len(text))},
        0.5,
        "exact",
        -1.0,
    )


def write_run(directory: Path, answers: Mapping[str, Mapping[int, str]], *, seeds: int = 1) -> Path:
    """A run of one strength a method, 1 (0 for base); the texts of later seeds have a mark at their end."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        row(method, index, text + "." * seed, strength=0.0 if method == "base" else 1.0, seed=seed).as_json()
        for method, texts in answers.items()
        for seed in range(seeds)
        for index, text in texts.items()
    ]
    (directory / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {
        "title": "made up",
        "model": "tiny",
        "prompts": {"validation": {"builtin": "training"}, "test": {"builtin": "demo"}},
        "rewards": {"length": {"scorer": "sentiment"}},
        "methods": [{"method": "base" if name == "base" else "genarm", "name": name} for name in answers],
    }
    run = {"format": 1, "fingerprint": "x", "recipe": source, "settings": {"methods": {}}}
    (directory / "run.json").write_text(json.dumps(run))
    return directory
