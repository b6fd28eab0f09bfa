"""The comparison that the demo is: the base beside one guide at several strengths, under one reward."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.mixing.forms import PRODUCT, SHIFT
from trimtab.storage.cards import FORMED_KINDS, read_card
from trimtab.storage.directories import guide_directory

if TYPE_CHECKING:
    from trimtab.evaluation.comparison.recipe import Recipe

SHIPPED_GUIDE = "builtin:sentiment"

_FORMLESS = {"agent": ("mara", "guide"), "reward": ("args", "reward")}
"""Kind of a guide that has no form -> the method that steers with it, and the option of that method that names it."""

_FORMS = (
    "As a shift the guide adds what training changed in it, and below 0 it steers the other way; as a product "
    "(GenARM's form) it adds all that it says, its base's share with it."
)
_SAME_JUDGE = (
    "The same scorer labelled the pairs that the guide was trained on. The rise shows that the guide does what it was "
    "taught, on prompts it has not seen; whether readers would agree is another question."
)


def demo_recipe(args: argparse.Namespace, guide: str, reward: str) -> Recipe:
    """The comparison that the demo is. Raises OptionError for strengths that mean nothing to the guide."""
    from trimtab.evaluation.comparison.catalogued import known_methods
    from trimtab.evaluation.comparison.recipe_reader import parse_recipe
    from trimtab.methods.catalogue import check_method

    kind = read_card(guide_directory(guide, None)).kind
    role = "trained_on" if _trained_on(args) else "measured"
    source = {
        "title": _title(args, guide),
        "model": args.model,
        "prompts": {"test": {"builtin": "demo", "num": args.prompts}},
        "decoding": {"max_new_tokens": args.max_new_tokens, "temperature": 1.0},
        "seeds": [args.seed],
        "batch_size": args.batch_size,
        "rewards": {reward: {"scorer": args.scorer, "role": role}},
        "methods": [{"method": "base"}, *_steered(guide, kind, sorted(set(args.strengths)))],
    }
    return parse_recipe(source, Path.cwd(), known_methods(), check_method, name="The demo")


def _steered(guide: str, kind: str, strengths: Sequence[float]) -> list[dict[str, object]]:
    """The guide as methods: in both forms, but for a tuned policy, which is a shift; where it has no form, as it is."""
    if kind not in FORMED_KINDS:
        method, option = _FORMLESS[kind]
        return [{"name": "strength", "method": method, option: guide, "strengths": strengths}]
    shift: dict[str, object] = {"name": SHIFT, "method": "policy", "path": guide, "strengths": strengths}
    positive = [weight for weight in strengths if weight > 0]
    product: dict[str, object] = {"name": PRODUCT, "method": "genarm", "guides": {"guide": guide}}
    product["strengths"] = positive
    return [shift, product] if positive and kind != "policy" else [shift]


def _title(args: argparse.Namespace, guide: str) -> str:
    if args.model == "demo" and args.scorer == "sentiment" and guide == SHIPPED_GUIDE:
        return "A frozen SmolLM2-135M-Instruct, steered towards positive sentiment"
    return f"{args.model}, frozen, steered by {guide}"


def _trained_on(args: argparse.Namespace) -> bool:
    """Whether the guide was trained on pairs that the scorer labelled, as far as the demo knows."""
    return args.guide in (None, SHIPPED_GUIDE) and args.scorer == "sentiment"


def notes_of(args: argparse.Namespace, guide: str) -> dict[str, str]:
    """What a reader must know to judge the figures, beside what the report of every comparison says."""
    trained_on = _trained_on(args)
    unseen = ", none of which the guide was trained on" if trained_on else ""
    name = "SmolLM2-135M-Instruct" if args.model == "demo" else args.model
    return {
        "What it is": f"{name}, not trained; the prompts are {args.prompts} of our own{unseen}",
        "Guide": _guide_note(guide),
        "Forms": _FORMS,
        "Judge": _SAME_JUDGE if trained_on else "what the guide was trained on, its own card says",
        "Made": f"{date.today().isoformat()} by: trimtab {shlex.join(sys.argv[1:])}",
    }


def _guide_note(guide: str) -> str:
    card: dict[str, Any] = dict(read_card(guide_directory(guide, None)).written)
    if card.get("kind", "arm") != "arm" or "form" not in card:
        return guide
    text = f"{guide}, an autoregressive reward model ({card['form']})"
    metrics, data = card.get("metrics", {}), card.get("data", {})
    if data.get("num_pairs"):
        text += f", trained on {data['num_pairs']} preference pairs"
    if metrics.get("eval_accuracy") is not None:
        text += (
            f"; it prefers the better answer of {metrics['num_eval_pairs']} held-out pairs in "
            f"{metrics['eval_accuracy']:.0%} of cases (95 % interval {metrics['eval_accuracy_low']:.0%} to "
            f"{metrics['eval_accuracy_high']:.0%})"
        )
    return text


def strengths_in_words(recipe: Recipe) -> str:
    """`shift -1, 0, 1; product 1`."""
    from trimtab.evaluation.comparison.recipe import strength_text

    return "; ".join(f"{spec.name} {', '.join(map(strength_text, spec.strengths))}" for spec in recipe.methods[1:])
