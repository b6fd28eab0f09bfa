"""`soup`: one policy whose weights are the average of several (Rewarded Soups, NeurIPS 2023, arXiv 2306.04488).

Policies trained from one start for one reward each are averaged with weights λ; sweeping λ gives a front between the
rewards, and no training.

Where it differs from the paper: LoRA policies are averaged as what they change, ΔW = Σ λ_i B_i A_i, which is the
average of the policies' weights; averaging A and B instead is not, and has a name of its own (`factors`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trimtab.errors import BaseMismatchError, CheckpointError, VocabularyMismatchError, unknown_name
from trimtab.models.adapters.lora import LoRA, average, average_factors, check_weights
from trimtab.models.hf import HFModel
from trimtab.storage.directories import read_guide_card
from trimtab.storage.files import new_directory, write_text
from trimtab.storage.loading import load_model
from trimtab.training.run.card import settings_and_versions, versions
from trimtab.training.run.identity import Facts

AVERAGES = {"deltas": average, "factors": average_factors}
"""Name -> what averages LoRA adapters so."""


@dataclass(frozen=True, slots=True)
class SoupPart:
    """One policy of a soup: its directory and its λ."""

    path: str
    weight: float


def soup(parts: Sequence[SoupPart], out: str | Path, *, averaged: str = "deltas", overwrite: bool = False) -> Path:
    """Write the average of policies of one base as a policy of its own.

    All parts are LoRA adapters (`deltas`: ΔW = Σ λ_i ΔW_i, exactly; `factors`: A and B averaged), or all are whole
    models, averaged tensor by tensor. Weights are taken as they are, whatever their sum.

    Raises OptionError, OutputExistsError, CheckpointError for a directory that holds no policy, BaseMismatchError and
    VocabularyMismatchError for parts that do not belong together.
    """
    if averaged not in AVERAGES:
        raise unknown_name("average", averaged, AVERAGES)
    check_weights([part.weight for part in parts], len(parts))
    cards = [_policy_card(Path(part.path)) for part in parts]
    forms = {"lora" if (Path(part.path) / "adapter_config.json").exists() else "full" for part in parts}
    if len(forms) > 1:
        raise CheckpointError(
            "Some of these policies are LoRA adapters and others whole models. Merge the adapters into their base "
            "with peft's merge_and_unload(), then average the models."
        )
    with new_directory(Path(out), overwrite=overwrite) as temporary:
        if forms == {"lora"}:
            base, vocabulary = _average_adapters(parts, cards, averaged, temporary)
        else:
            base, vocabulary = _average_models(parts, cards, temporary)
        card = _card(parts, cards, forms.pop(), averaged, base, vocabulary)
        write_text(temporary / "guide.json", json.dumps(card, indent=2, allow_nan=False) + "\n")
        write_text(temporary / "README.md", _readme(card))
    return Path(out)


def _policy_card(directory: Path) -> Facts:
    """`guide.json` of a policy, empty for a plain adapter or model."""
    if not any((directory / name).exists() for name in ("adapter_config.json", "config.json")):
        raise CheckpointError(
            f"{directory} holds no policy: there is no adapter_config.json or config.json in it. Give directories "
            "written by trimtab train dpo or trimtab train rl, peft adapters, or causal language models."
        )
    card = read_guide_card(directory)
    if card.get("kind", "policy") != "policy":
        raise CheckpointError(
            f"{directory} holds a guide of kind {card['kind']!r}; a soup averages policies. Guides are mixed while "
            "decoding, each at a weight of its own: `trimtab generate --guide NAME=PATH:WEIGHT`."
        )
    return card


def _average_adapters(
    parts: Sequence[SoupPart], cards: Sequence[Facts], averaged: str, directory: Path
) -> tuple[Facts, Facts]:
    """Write the averaged adapter; the base and the vocabulary that it belongs to."""
    adapters = [LoRA.load(Path(part.path), card) for part, card in zip(parts, cards, strict=True)]
    mixed = AVERAGES[averaged](adapters, [part.weight for part in parts])
    mixed.save(directory)
    return mixed.base, mixed.vocabulary


def _average_models(parts: Sequence[SoupPart], cards: Sequence[Facts], directory: Path) -> tuple[Facts, Facts]:
    """Write the averaged model: float32 sums, one tensor at a time, in the first one's dtype."""
    first = load_model(parts[0].path, device="cpu")
    weights = {name: parts[0].weight * tensor.float() for name, tensor in first.module.named_parameters()}
    for part in parts[1:]:
        other = load_model(part.path, device="cpu")
        _check_same_shape(first, other, part.path)
        for name, tensor in other.module.named_parameters():
            weights[name] += part.weight * tensor.float()
    with torch.no_grad():
        for name, tensor in first.module.named_parameters():
            tensor.copy_(weights[name])
    first.module.save_pretrained(directory)
    vocabulary = {}
    if first.tokenizer is not None:
        first.tokenizer.hf.save_pretrained(directory)
        vocabulary = {"fingerprint": first.tokenizer.fingerprint, "size": len(first.tokenizer.tokens)}
    return dict(cards[0].get("base") or first.describe()), vocabulary


def _check_same_shape(first: HFModel, other: HFModel, path: str) -> None:
    shapes, others = ({name: p.shape for name, p in model.module.named_parameters()} for model in (first, other))
    if shapes != others:
        name = next(key for key in [*shapes, *others] if shapes.get(key) != others.get(key))
        raise BaseMismatchError(
            f"{path} is a model of another shape than {first.name} (first: {name}). Average models that were trained "
            "from the same start."
        )
    ours = [None if model.tokenizer is None else model.tokenizer.fingerprint for model in (first, other)]
    if ours[0] != ours[1]:
        raise VocabularyMismatchError(
            f"{path} has another vocabulary than {first.name}. Average models that were trained from the same start."
        )


def _card(
    parts: Sequence[SoupPart],
    cards: Sequence[Facts],
    form: str,
    averaged: str,
    base: Facts,
    vocabulary: Facts,
) -> Facts:
    sources = [
        {"path": part.path, "weight": part.weight, "data": card.get("data", {}).get("fingerprint", "")}
        for part, card in zip(parts, cards, strict=True)
    ]
    return {
        "format": 1,
        "kind": "policy",
        "form": form,
        "base": dict(base),
        "vocabulary": dict(vocabulary),
        "hyperparameters": {"average": averaged if form == "lora" else "weights"},
        "data": {"fingerprint": "", "files": [], "num_pairs": 0},
        "soup": sources,
        "metrics": {},
        "versions": versions(),
    }


def _readme(card: Facts) -> str:
    """The model card, from the same facts as `guide.json`."""
    front = {
        "library_name": "peft" if card["form"] == "lora" else "transformers",
        "tags": ["trimtab", "rewarded-soup"],
    }
    return "\n".join(
        [
            *("---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""),
            *("# A soup of policies, made with trimtab", ""),
            "The average of policies that were trained from the same start (Rewarded Soups, arXiv 2306.04488):",
            "",
            *("| policy | weight |", "|---|---|"),
            *(f"| {part['path']} | {part['weight']:g} |" for part in card["soup"]),
            "",
            *settings_and_versions(card),
        ]
    )
