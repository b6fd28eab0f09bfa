"""What a comparison takes from the catalogue of methods: what a recipe may say of them, and what its report says."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trimtab.evaluation.comparison.recipe import Recipe
from trimtab.evaluation.comparison.recipe_reader import KnownMethod
from trimtab.evaluation.throughput import commit, machine
from trimtab.methods.table import METHODS
from trimtab.storage.scorers import Scorer


def known_methods() -> dict[str, KnownMethod]:
    """What the reader of recipes must know of every method."""
    return {name: KnownMethod(tuple(method.options), method.default_strengths) for name, method in METHODS.items()}


def about_run(
    recipe: Recipe, device: torch.device, scorers: Mapping[str, Scorer], notes: Mapping[str, str] | None = None
) -> dict[str, object]:
    """What a reader of a run should know beside its settings; `notes` are terms and sentences for its report."""
    methods = {spec.name: METHODS[spec.method] for spec in recipe.methods}
    return {
        "machine": machine(device),
        "commit": commit(),
        "scorers": {name: scorer.description for name, scorer in scorers.items()},
        "methods": {
            label: {
                "summary": method.summary,
                "paper": f"arXiv {method.paper}" if method.paper else "",
                "dial": method.dial,
            }
            for label, method in methods.items()
        },
        **({"notes": dict(notes)} if notes else {}),
    }
