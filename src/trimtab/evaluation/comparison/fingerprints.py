"""What a run depends on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimtab.core import Prompt
from trimtab.evaluation.comparison.recipe import SCORER, MethodSpec, Recipe, resolved
from trimtab.evaluation.throughput import versions
from trimtab.methods.catalogue import form_is_the_cards
from trimtab.methods.options import TEMPLATE
from trimtab.prompts import as_json
from trimtab.storage.digests import model_contents, scorer_contents
from trimtab.storage.files import text_digest


def run_settings(recipe: Recipe, prompts: Mapping[str, Sequence[Prompt]], model: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that an answer of a run depends on; `model` describes the loaded model.

    Seeds, strengths and the batch size are not among them: an answer names its seed and strength, and no answer depends
    on its company.
    """
    return {
        "model": {
            "name": recipe.model,
            "dtype": recipe.dtype,
            **({"quantize": recipe.quantize} if recipe.quantize else {}),
            "files": model_contents(str(resolved(recipe.model, recipe.directory))),
            **{key: value for key, value in model.items() if key != "name"},
        },
        "template": recipe.template,
        **({"template_options": dict(recipe.template_options)} if recipe.template_options else {}),
        "decoding": {key: _as_json(value) for key, value in recipe.decoding.items()},
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
                "files": scorer_contents(recipe.scorer_of(reward)),
            }
            for reward in recipe.rewards
        },
        "methods": {spec.name: _method(recipe, spec) for spec in recipe.methods},
        "versions": versions(),
    }


def _as_json(value: Any) -> Any:
    """A value of a recipe's decoding as it is read back from JSON, whose keys are texts."""
    if isinstance(value, Mapping):
        return {str(key): one for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def fingerprint(settings: Mapping[str, object]) -> str:
    """One number for all of it."""
    return text_digest(json.dumps(settings, sort_keys=True))


def content_digests(value: object, place: str = "", *, calibrated: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, digests) of every model, guide or reward model that an option names; a weight may stand behind a colon.

    The place is that of the name in the option (`guides.kind`, `paths.0`), so that a run that is moved stays the same
    run, and two guides of one directory name are two.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from content_digests(item, f"{place}.{key}" if place else str(key), calibrated=calibrated)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from content_digests(item, f"{place}.{index}" if place else str(index), calibrated=calibrated)
    elif isinstance(value, str):
        for name in (value, value.rpartition(":")[0]):
            if name and (digests := model_contents(name, calibrated=calibrated)):
                yield place, digests
                return


def _method(recipe: Recipe, spec: MethodSpec) -> dict[str, Any]:
    return {
        "method": spec.method,
        "options": dict(spec.options),
        "files": option_contents(spec.method, recipe.options_of(spec)),
    }


def option_contents(method: str, options: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """The digests of all that the options of a method name: models, guides, reward models, a scorer.

    A method says itself how strongly it runs a guide, and mostly in which form; then the calibration in a guide's card
    changes no answer, and is left out.
    """
    named = {key: value for key, value in options.items() if key not in (SCORER, TEMPLATE)}
    contents = dict(content_digests(named, calibrated=form_is_the_cards(method, options)))
    if SCORER in options:
        contents[SCORER] = scorer_contents(str(options[SCORER]))
    return contents
