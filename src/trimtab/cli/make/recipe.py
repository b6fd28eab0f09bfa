"""The comparison that `trimtab make` reports: base, sharpened base, the sentences by themselves, the guide."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.cli.calibrate import sentence_reward
from trimtab.cli.make.stages import Plan, reward_of
from trimtab.storage.files import write_text

if TYPE_CHECKING:
    from trimtab.storage.calibrated import Calibration
    from trimtab.training.run.rewards import AgentReward

SHARPENED = (0.5, 1.0, 2.0)
SENTENCE_WEIGHTS = (1.0, 2.0, 4.0)
UNCALIBRATED = (1.0, 2.0, 4.0)
HEADLINE = "guide"
"""What the guide at its calibrated strength is called in the report, whose first sentence is about it."""


def write_recipe(plan: Plan, sentences: Mapping[str, str]) -> None:
    """Write the recipe file, whole or not at all. The guide is there, and its card says what it was calibrated to."""
    import yaml  # type: ignore[import-untyped]

    text = yaml.safe_dump(recipe_of(plan, sentences), sort_keys=False, allow_unicode=True, width=1000)
    write_text(plan.places.recipe, text)


def recipe_of(plan: Plan, sentences: Mapping[str, str]) -> dict[str, object]:
    """The recipe; its paths are relative to its file."""
    from trimtab.evaluation.comparison.recipe import MEASURED, TRAINED_ON, resolved
    from trimtab.storage.cards import read_card

    trained = [reward_of(text) for text in plan.rewards or plan.measured]
    if sentences:
        trained = [sentence_reward(sentences["towards"], sentences["away"])]
    rewards = {reward.name: _reward(reward, TRAINED_ON) for reward in trained}
    rewards |= {reward.name: _reward(reward, MEASURED) for reward in map(reward_of, plan.golds)}
    return {
        "title": _title(plan),
        "model": resolved(plan.model, Path.cwd()),
        "template": plan.template,
        **({"template_options": dict(plan.template_options)} if plan.template_options else {}),
        "prompts": {"test": {"path": plan.places.prompts("test").name}},
        "decoding": {"max_new_tokens": plan.max_new_tokens},
        "seeds": [plan.seed],
        "batch_size": plan.batch_size,
        "rewards": rewards,
        "methods": [
            {"method": "base"},
            {"method": "sharpened", "strengths": list(SHARPENED)},
            *_by_sentence(sentences),
            *_guide(plan),
        ],
        **({} if read_card(plan.places.guide).calibration is None else {"headline": HEADLINE}),
    }


def _title(plan: Plan) -> str:
    from trimtab.storage.cards import read_card

    found = read_card(plan.places.guide).calibration
    chosen = "" if found is None else f", {found}, chosen on other prompts"
    return f"{plan.model}, frozen, steered by {plan.places.guide.name}{chosen}"


def _by_sentence(sentences: Mapping[str, str]) -> list[dict[str, object]]:
    """What the sentences do without a guide: as a system prompt, and weighed."""
    if not sentences:
        return []
    from trimtab.guides.sentences import Sentences
    from trimtab.storage.sentences import sentence_name

    towards, away = sentences["towards"], sentences["away"]
    return [
        {"name": "system prompt", "method": "system", "guide": sentence_name(Sentences(towards))},
        {
            "name": "sentences weighed",
            "method": "prompt",
            "guide": sentence_name(Sentences(towards, away)),
            "strengths": list(SENTENCE_WEIGHTS),
        },
    ]


def _guide(plan: Plan) -> list[dict[str, object]]:
    """The guide: around its calibrated strength in that form, else at a few strengths in every form."""
    from trimtab.making.sweep import TRIED
    from trimtab.methods.ways import WAYS
    from trimtab.storage.cards import read_card

    card = read_card(plan.places.guide)
    path = os.path.relpath(plan.places.guide, plan.places.work)
    found, ways = card.calibration, WAYS[card.kind]
    if found is not None:
        way = next(way for way in ways if way.form == found.form)
        beside = _beside(found)
        others = [way.entry(f"{HEADLINE}, other strengths", path, beside)] if beside else []
        return [way.entry(HEADLINE, path, [found.strength]), *others]
    strengths = TRIED[card.kind] if card.kind == "agent" else UNCALIBRATED
    return [way.entry(_label(way.form), path, strengths) for way in ways]


def _label(form: str | None) -> str:
    return f"{HEADLINE}, {form}" if form else HEADLINE


def _beside(found: Calibration) -> list[float]:
    """The neighbours of the calibrated strength among those tried."""
    tried = found.tried.get(found.form or "", [])
    below = [strength for strength in tried if strength < found.strength][-1:]
    above = [strength for strength in tried if strength > found.strength][:1]
    return [*below, *above]


def _reward(reward: AgentReward, role: str) -> dict[str, object]:
    from trimtab.evaluation.comparison.recipe import resolved_scorer
    from trimtab.making.sweep import reward_source

    source = resolved_scorer(reward_source(reward), Path.cwd())
    return {"scorer": source, "weight": reward.multiplier, "role": role}
