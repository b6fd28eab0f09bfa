"""A tiny base with tiny guides on disk, what the built-in engine answers with them, and what vLLM does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.engines.vllm import drive
from tests.engines.vllm.rig import run_program, runner_environment
from tests.tiny import tiny_module, tiny_tokenizer, write_lora
from trimtab import Decoder, SamplingParams, load_guide, load_model
from trimtab.answers import Answer
from trimtab.engines.vllm.packing import pack

LENGTH = 256
SHAPE = {"head_dim": 32, "max_position_embeddings": LENGTH}  # vLLM's attention on a processor has no smaller heads
OTHER = {**SHAPE, "hidden_size": 96, "num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 3}
"""Another depth, width and number of key-value heads than the base's."""
SMALL = {**SHAPE, "num_hidden_layers": 2, "hidden_size": 64}


def build(directory: Path, family: str = "llama", **shape: Any) -> Path:
    """A base `base`, adapters of it `near` and `far`, a model of another shape `other`, a smaller base `small` and
    adapters of it, `weak` and `weaker`, whose cards name it; all random.
    """
    module = save(directory / "base", family, seed=1, **{**SHAPE, **shape})
    for name, seed in (("near", 2), ("far", 3)):
        write_lora(directory / name, module, rank=seed, seed=seed)
    save(directory / "other", family, seed=4, **{**OTHER, **shape})
    small = save(directory / "small", family, seed=5, **{**SMALL, **shape})
    for name, seed in (("weak", 6), ("weaker", 7)):
        write_lora(directory / name, small, rank=2, seed=seed)
        base = {"name": str(directory / "small"), "num_layers": SMALL["num_hidden_layers"]}
        (directory / name / "guide.json").write_text(json.dumps({"format": 1, "kind": "arm", "base": base}))
    return directory


def save(directory: Path, family: str, *, seed: int, **shape: Any) -> Any:
    module = tiny_module(family, seed=seed, **shape)
    module.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return module


def prompts(number: int, *, longest: int = 40, seed: int = 0) -> list[list[int]]:
    """Random prompts of unequal length; every third begins like the one before it."""
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = []
    for index in range(number):
        length = int(torch.randint(1, longest, (1,), generator=generator))
        ids = torch.randint(2, 61, (length,), generator=generator).tolist()
        found.append([*found[-1], *ids][:longest] if index % 3 == 2 else ids)
    return found


def expected(
    house: Path,
    guides: Mapping[str, str],
    requests: Sequence[Mapping[str, Any]],
    forms: Mapping[str, str] | None = None,
    bases: Mapping[str, Path] | None = None,
) -> list[Answer]:
    """The built-in engine's answers, traced."""
    model = load_model(house / "base")
    loaded = {
        name: load_guide(
            house / path, beside=model, form=(forms or {}).get(name), guide_base=(bases or {}).get(name), weight=0.0
        )
        for name, path in guides.items()
    }
    asked = [
        (
            request["ids"],
            SamplingParams(
                weights=request.get("weights", {}),
                temperature=0,
                max_new_tokens=request.get("params", {}).get("max_tokens", 8),
                ignore_eos=True,
                trace=True,
            ),
        )
        for request in requests
    ]
    return list(Decoder(model, loaded).answers(asked))


def served(house: Path, guides: Mapping[str, str], out: Path, **how: Any) -> Path:
    """The guides packed for vLLM."""
    pack(house / "base", {name: house / path for name, path in guides.items()}, out, overwrite=True, **how)
    return out


def run(
    version: str, directory: Path, served: Path, waves: Sequence[Sequence[Mapping[str, Any]]], **options: Any
) -> dict[str, Any]:
    """What vLLM answers, on one of its runners, in a process of its own (see `drive`)."""
    environment = runner_environment(version, directory / "rig")
    given = {"served": str(served), "options": {"max_num_seqs": 16, **options}, "waves": waves}
    found: dict[str, Any] = run_program(Path(drive.__file__).read_text(), given, environment, directory)
    assert found["version"] == version
    return found


def differences(found: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> tuple[int, float]:
    """How many answers have other tokens, and the largest gap between log-probabilities where they have the same."""
    wrong, gap = 0, 0.0
    for mine, answer in zip(found, answers, strict=True):
        if tuple(mine["ids"]) != answer.token_ids:
            wrong += 1
            continue
        assert answer.trace is not None
        pairs = zip(mine["logprobs"], answer.trace, strict=False)
        gap = max([gap, *(abs(logprob - step.chosen.mixed_logprob) for logprob, step in pairs)])
    return wrong, gap
