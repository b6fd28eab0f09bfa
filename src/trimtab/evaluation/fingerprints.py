"""What a run depends on, and where two runs differ in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.core import Prompt
from trimtab.evaluation.json_lines import short
from trimtab.evaluation.recipe import MethodSpec, Recipe
from trimtab.evaluation.throughput import versions
from trimtab.prompts import as_json

_BLOCK = 1 << 22


def run_settings(recipe: Recipe, prompts: Mapping[str, Sequence[Prompt]], model: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that an answer of a run depends on; `model` describes the loaded model.

    Seeds, strengths and the batch size are not among them: an answer names its seed and strength, and no answer depends
    on its company.
    """
    return {
        "model": {"name": recipe.model, "dtype": recipe.dtype, **{k: v for k, v in model.items() if k != "name"}},
        "template": recipe.template,
        **({"template_options": dict(recipe.template_options)} if recipe.template_options else {}),
        "decoding": {key: list(value) if isinstance(value, tuple) else value for key, value in recipe.decoding.items()},
        "prompts": {
            split: {
                "num": len(items),
                "sha256": text_digest(json.dumps([as_json(item) for item in items], ensure_ascii=True)),
            }
            for split, items in prompts.items()
        },
        "rewards": {
            reward.name: {
                "scorer": reward.scorer,
                "weight": reward.weight,
                "files": dict(content_digests(recipe.scorer_of(reward))),
            }
            for reward in recipe.rewards
        },
        "methods": {spec.name: _method(recipe, spec) for spec in recipe.methods},
        "versions": versions(),
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """One number for all of it."""
    return text_digest(json.dumps(settings, sort_keys=True))


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two settings differ, as sentences. Methods that only one of them has are no difference."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = {*before, *after} if place != "methods" else {*before} & {*after}
        return [
            sentence
            for name in sorted(names)
            for sentence in differences(before.get(name), after.get(name), f"{place}.{name}" if place else str(name))
        ]
    return [] if before == after else [f"{place} was {short(before)}, is {short(after)}"]


def content_digests(value: Any) -> Iterator[tuple[str, str]]:
    """(name, digest) of every file or directory that an option names; a path may have a weight behind a colon.

    The name is the last part of the path, so that a run that is moved stays the same run.
    """
    if isinstance(value, Mapping):
        for item in value.values():
            yield from content_digests(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from content_digests(item)
    elif isinstance(value, str) and "/" in value:
        for path in (Path(value), Path(value.rpartition(":")[0])):
            if path.exists() and str(path) != ".":
                yield path.name, path_digest(path)
                return


def text_digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _method(recipe: Recipe, spec: MethodSpec) -> dict[str, Any]:
    return {
        "method": spec.method,
        "options": dict(spec.options),
        "files": dict(content_digests(recipe.options_of(spec))),
    }


def path_digest(path: Path) -> str:
    """Of a file, or of what a directory says and weighs."""
    files = [path] if path.is_file() else sorted([*path.glob("*.json"), *path.glob("*.safetensors")])
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
