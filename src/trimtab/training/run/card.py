"""What a guide says about itself: `guide.json` for programs, `README.md` for people."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.statistics import FEW
from trimtab.storage.card_values import SHIFT_ACCURACY, accuracy_in, sign_accuracy
from trimtab.storage.cards import write_card
from trimtab.storage.files import write_text
from trimtab.training.run.identity import Facts

_PACKAGES = ("trimtab", "torch", "transformers", "trl", "peft")


def few_prompts(metrics: Facts) -> str:
    """What has to be said of an accuracy over so few prompts that it says little; nothing over more."""
    num = metrics.get("num_eval_prompts", metrics["num_eval_pairs"])
    return f"An accuracy over fewer than {FEW} prompts says little; these are {num}." if num < FEW else ""


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of what trained the guide."""
    return {name: importlib.metadata.version(name) for name in packages}


@dataclass(frozen=True, slots=True)
class About:
    """What a method's model card says of what was trained."""

    text: str
    """How it was trained and what it does, as the end of a sentence: "trained as ..."."""
    code: tuple[str, ...]
    """Python lines that use it; {base} stands for the base's name, quoted."""
    title: str = "A guide for trimtab"
    tags: tuple[str, ...] = ("reward-guided-decoding",)
    correct: str = "whose preferred response has the higher reward"
    """Which held-out pairs the accuracy counts."""
    measured: Callable[[Facts], list[str]] | None = None
    """Lines of what was measured, from `metrics`; left out: the accuracy on held-out pairs."""


_FORMS = {
    "lora": ("peft", "A LoRA adapter of"),
    "bilinear": ("trimtab", "A bilinear adapter of"),
    "head": ("trimtab", "A low-rank head on the final state of"),
    "full": ("transformers", "All weights, started from"),
}
"""Form of what was trained -> the library that loads it, and how the card's first sentence begins."""


_GUIDE_FORMS = {
    "product": "a product, the paper's way: its score of a token is its log-probability, log π_r",
    "shift": "a shift: its score of a token is its log-probability less its base's share, log π_r − log π_base",
}


def write_cards(directory: Path, card: Facts, about: About) -> None:
    """Write `guide.json` and `README.md` into the guide's directory."""
    write_card(directory, card)
    write_text(directory / "README.md", model_card(card, about))


def model_card(card: Facts, about: About) -> str:
    """The model card, from the same facts as `guide.json`."""
    library, what = _FORMS[card["form"]]
    front = {
        "library_name": library,
        "tags": ["trimtab", *about.tags],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    base, metrics = card["base"], card["metrics"]
    lines += [
        f"# {about.title}",
        "",
        f"{what} `{base['name']}` ({base['architecture']}), {about.text}",
        "",
        *_steers_as(card),
        "```python",
        *(line.format(base=json.dumps(base["name"])) for line in about.code),
        "```",
        "",
        "## Data",
        "",
        f"{_data(card['data'])}{_left_out(metrics)}",
        "",
        "## Measured",
        "",
        *(about.measured(metrics) if about.measured else _measured(metrics, about)),
        "",
        *settings_and_versions(card),
    ]
    return "\n".join(lines) + "\n"


def _steers_as(card: Facts) -> list[str]:
    if "guide_form" not in card:
        return []
    return [f"It steers as {_GUIDE_FORMS[card['guide_form']]}.", ""]


def _data(data: Facts) -> str:
    what = f"{data['num_pairs']} preference pairs" if "num_pairs" in data else f"{data['num_prompts']} prompts"
    files = ", ".join(data["files"]) or "given in Python"
    return f"{what} ({files}), fingerprint `{data['fingerprint'][:16]}`."


def settings_and_versions(card: Facts) -> list[str]:
    """The end of any guide's model card: a table of its hyperparameters, and what it was trained with."""
    return [
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in card["hyperparameters"].items()),
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in card["versions"].items()) + ".",
    ]


def _left_out(metrics: Facts) -> str:
    counts = {
        "num_skipped": "lines that could not be used",
        "num_stock": "pairs with a response that answers many different prompts",
        "num_dropped": "pairs whose responses became the same when cut",
    }
    parts = [f"{metrics[name]} {what}" for name, what in counts.items() if metrics.get(name)]
    return f" Left out: {'; '.join(parts)}." if parts else ""


def _measured(metrics: Facts, about: About) -> list[str]:
    accuracy, sign = accuracy_in(metrics), sign_accuracy(metrics)
    if accuracy is None:
        return ["No pairs were held out, so nothing was measured."]
    turned = ""
    if sign is None:
        turned = " All pairs are even: nothing was learnt."
    elif sign.high < 0.5:
        turned = " Fewer than a coin would get right: the sign may be turned."
    few = few_prompts(metrics)
    return [
        f"Accuracy on {metrics['num_eval_pairs']} pairs that were not trained on: {accuracy.value:.3f} "
        f"(95 % interval {accuracy.low:.3f} to {accuracy.high:.3f}; Wilson, over "
        f"prompts). It is the share of pairs {about.correct}; a coin gets 0.5."
        f"{_beside_the_base(metrics)}{turned}{few and f' {few}'}"
    ]


def _beside_the_base(metrics: Facts) -> str:
    shift = accuracy_in(metrics, SHIFT_ACCURACY)
    if shift is None:
        return ""
    return (
        f" By its log-probability less the base's, {shift.value:.3f} ({shift.low:.3f} to {shift.high:.3f}): this is "
        "what training added, while the log-probability alone is for the most part how likely the base finds an answer."
    )
