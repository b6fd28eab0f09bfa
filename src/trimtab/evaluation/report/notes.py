"""What a reader of a comparison must know to judge it: how it was done, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from trimtab.evaluation.comparison.recipe import (
    JUDGED_BY,
    MEASURED,
    TRAINED_ON,
    PromptSource,
    Recipe,
    Reward,
)
from trimtab.evaluation.comparison.records import Row, RunRecord
from trimtab.evaluation.comparison.summary import MIN_PROMPTS, Cell, Chosen
from trimtab.evaluation.comparison.text_metrics import COHERENCE
from trimtab.evaluation.report.wording import how_many, listed, strength_shown
from trimtab.gates import BET, RANDOM, read_gate
from trimtab.statistics import NUM_RESAMPLES

SAME_RATE = 0.02
"""Two gates are of one rate where the shares of tokens at which their guides acted differ by at most this."""

_KL = {
    "exact": "exact, from what is drawn from (temperature, penalties and filters included) to the base at temperature "
    "1: summed over the whole vocabulary and an answer's steps; −log π of the base where a token is taken for sure "
    "(temperature 0, rules that accept or reject)",
    "bound": "an upper bound",
    "unknown": "unknown, so not drawn",
}


def notes_of(recipe: Recipe, run: RunRecord, cells: Sequence[Cell]) -> dict[str, str]:
    """How it was done: term -> plain text. What the run itself says of it (`notes` of run.json) comes first."""
    held = f", quantised to {recipe.quantize}" if recipe.quantize else ""
    notes = {
        **run.get("notes", {}),
        "Model": f"{recipe.model}, frozen, dtype {recipe.dtype}{held}",
        "Prompts": "; ".join(f"{split}: {_prompts(source, run, split)}" for split, source in recipe.prompts.items()),
        "Decoding": _decoding(recipe),
        "Seeds": f"{', '.join(map(str, recipe.seeds))}; a prompt's seeds are averaged before anything is resampled",
        **_rewards(recipe, run),
        **_joint(recipe),
        **_gates(cells),
        **_candidates(cells),
        "KL": "; ".join(f"{', '.join(labels)}: {_KL.get(kind, kind)}" for kind, labels in _by_kind(cells).items()),
        "Intervals": f"95 %, bootstrap over prompts (BCa, {NUM_RESAMPLES:,} resamples), from {MIN_PROMPTS} prompts on; "
        "differences to the base are paired by prompt; nothing corrects for how many methods are compared",
        "Coherence": COHERENCE,
        "Cost": f"wall clock of decoding alone, {recipe.batch_size} answers at a time, one method after another in one "
        "process; what was cut and continued may have run on a busier machine",
        "Machine": _flat(run.get("machine", {})),
        "Versions": _flat(run.get("settings", {}).get("versions", {})),
        "Commit": str(run.get("commit") or "not from a checkout"),
        "Fingerprint": str(run.get("fingerprint", "")),
    }
    return {**notes, **_methods(recipe, run)}


def warnings_of(recipe: Recipe, num_missing: int, num_wanted: int, cells: Sequence[Cell]) -> list[str]:
    """What a reader must know before the figures."""
    warnings = []
    if num_missing:
        warnings.append(f"This run is not finished: {num_missing} of {num_wanted} answers are missing.")
    few = sorted({cell.spec.name for cell in cells if cell.num_prompts < MIN_PROMPTS})
    if few:
        warnings.append(
            f"Fewer than {MIN_PROMPTS} prompts are too few for an interval; these have none: {', '.join(few)}. "
            "Their means may be chance."
        )
    fewer = [spec for spec in recipe.methods if spec.max_prompts is not None]
    if fewer:
        listed = ", ".join(f"{spec.name} ({spec.max_prompts})" for spec in fewer)
        warnings.append(f"Some methods cost much and answer only the first prompts of each split: {listed}.")
    return [*warnings, *_without_control(cells)]


def choices_note(recipe: Recipe, chosen: Mapping[str, Chosen]) -> str:
    """How strengths were chosen."""
    if recipe.is_pareto:
        return "Every strength is shown: with two objectives the sweep is the result, and none is chosen."
    if recipe.headline is not None:
        return f"{recipe.headline} was chosen, with its strength, on other prompts than these; every strength is shown."
    if "validation" not in recipe.prompts:
        return "The recipe has no validation prompts, so no strength is chosen or singled out: every one is shown."
    budget = "" if recipe.kl_budget is None else f" within {recipe.kl_budget:g} nats of KL an answer"
    reasons = "; ".join(f"{label}: {choice.why}" for label, choice in chosen.items() if "only" not in choice.why)
    return (
        f"Each method stands at the strength with the highest mean {recipe.main_reward.name} reward on the validation "
        f"prompts{budget}, and is measured on the test prompts, which had no say in it; nor in which method the first "
        "sentence of this page is about." + (f" {reasons}." if recipe.kl_budget is not None and reasons else "")
    )


def _prompts(source: PromptSource, run: RunRecord, split: str) -> str:
    splits = run["settings"].get("prompts", {}) if "settings" in run else {}
    num = splits[split]["num"] if split in splits else source.num
    where = f"trimtab's own list {source.builtin!r}" if source.builtin else str(source.path)
    return f"{num} of {where}, from number {source.start + 1} on"


def _decoding(recipe: Recipe) -> str:
    said = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in recipe.decoding.items())
    return f"{said or 'the defaults'}; an answer's seed depends on its prompt and seed only, whatever the method"


_ROLES = {
    MEASURED: "Rewards measured",
    TRAINED_ON: "Rewards trained on",
    JUDGED_BY: "Rewards judging",
}


def _rewards(recipe: Recipe, run: RunRecord) -> dict[str, str]:
    """What each reward is, by the role that may be said of it. Without a judge, that is said."""
    by_role = {
        heading: "; ".join(_reward(recipe, run, reward) for reward in recipe.rewards if recipe.role_of(reward) == role)
        for role, heading in _ROLES.items()
    }
    unseen = "none: the recipe names no reward that no method was trained on or chooses by"
    by_role[_ROLES[JUDGED_BY]] = by_role[_ROLES[JUDGED_BY]] or unseen
    return {heading: text for heading, text in by_role.items() if text}


def _joint(recipe: Recipe) -> dict[str, str]:
    if not recipe.joint:
        return {}
    chance = 0.5 ** len(recipe.joint)
    said = (
        f"the share of answers with more {listed(recipe.joint)} than the base's answer to the same prompt under the "
        f"same seed. The base drawn anew has about {chance:.2g} where these rewards have nothing to do with each "
        "other, and up to a half the more they go together"
    )
    return {f"Better in {how_many(recipe.joint)}": said}


def _reward(recipe: Recipe, run: RunRecord, reward: Reward) -> str:
    text = f"{reward.name}: {run.get('scorers', {}).get(reward.name, reward.scorer)}"
    if reward.weight != 1:
        text += f", times {reward.weight:g} so that higher is better"
    choosing = recipe.chosen_by(reward)
    return text + (f"; {', '.join(choosing)}: chooses among answers by this very reward" if choosing else "")


def _methods(recipe: Recipe, run: RunRecord) -> dict[str, str]:
    about = run.get("methods", {})
    described = {}
    for spec in recipe.methods:
        known = about.get(spec.name, {})
        options = ", ".join(f"{name} {_short(value)}" for name, value in spec.options.items())
        strengths = " | ".join(map(strength_shown, spec.strengths))
        parts = [known.get("summary", spec.method), known.get("paper", ""), options]
        parts.append(f"strengths {strengths}{' (' + known['dial'] + ')' if known.get('dial') else ''}")
        described[f"Method {spec.name}"] = "; ".join(part.rstrip(".") for part in parts if part)
    return described


def _gates(cells: Sequence[Cell]) -> dict[str, str]:
    said = [f"{_named(cell)} acts at {share:.1%} of the tokens" for cell, share in _gated(cells) if _rule(cell) != BET]
    return {"Gates": "; ".join(said)} if said else {}


def _candidates(cells: Sequence[Cell]) -> dict[str, str]:
    """How many candidates guides that select had to look at, and what gates saved beside no gate and beside chance."""
    said = []
    for cell in cells:
        number = _candidates_a_token(cell)
        if number is None:
            continue
        beside = [other for other in (_ungated(cell, cells), _control(cell, cells)) if other is not None]
        numbers = [(other, found) for other in beside if (found := _candidates_a_token(other))]
        saved = [f"{_saved(number, found)} {_named(other)}" for other, found in numbers]
        said.append(f"{_named(cell)} {number:.2f} a token" + (f" ({', '.join(saved)})" if saved else ""))
    return {"Candidates looked at": f"{'; '.join(said)}. Counted up to the one that decides"} if said else {}


def _candidates_a_token(cell: Cell) -> float | None:
    """None where no guide selected, or nobody counted."""
    if not any(row.num_needed for row in cell.rows):
        return None
    return sum(sum(row.num_needed.values()) for row in cell.rows) / max(1, sum(row.num_tokens for row in cell.rows))


def _saved(number: float, beside: float) -> str:
    """How much less one number is than another, in words that the other's name follows."""
    percent = round(100 * (1 - number / beside))
    return f"{abs(percent)}% {'fewer' if percent > 0 else 'more'} than" if percent else "as many as"


def _ungated(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The same agent at the same threshold without a gate, for a cell that has one."""
    if "gate" not in cell.spec.options:
        return None
    for one in cells:
        is_agent = one.spec.method == "mara" and one.spec.options.get("guide") == cell.spec.options["path"]
        if one.strength == cell.strength and (is_agent or (_share(one) == 1 and _source(one) == _source(cell))):
            return None if one is cell else one
    return None


def _control(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The gate of chance of a gate's rate, for a cell whose gate is none of chance and no bet."""
    share = _share(cell)
    if share is None or _rule(cell) in (RANDOM, BET):
        return None
    for one, other in _gated(cells):
        is_same = one.strength == cell.strength and _source(one) == _source(cell)
        if _rule(one) == RANDOM and is_same and abs(share - other) <= SAME_RATE:
            return one
    return None


def _without_control(cells: Sequence[Cell]) -> list[str]:
    """A sentence for each gated cell beside which no gate of chance of its rate stands."""
    said = []
    for cell, share in ((cell, share) for cell, share in _gated(cells) if _rule(cell) not in (RANDOM, BET)):
        if not share:
            said.append(f"The gate of {_named(cell)} never opened: its answers are the base's.")
        elif _control(cell, cells) is None:
            said.append(
                f"{_named(cell)} acts at {share:.1%} of the tokens, and no gate of chance of that rate stands "
                "beside it, so what the rule does cannot be told from acting less often. Add the same method with gate "
                f"{RANDOM}:{share:.2g} and go on with --resume."
            )
    return said


def _gated(cells: Sequence[Cell]) -> list[tuple[Cell, float]]:
    """Cells with a gate and a guide that runs, and the share of the tokens at which it acted."""
    found = [(cell, _share(cell)) for cell in cells]
    return [(cell, share) for cell, share in found if share is not None]


def _share(cell: Cell) -> float | None:
    """The share of the tokens at which a cell's guide acted; None without a gate."""
    return cell.mean(_acted) if "gate" in cell.spec.options else None


def _rule(cell: Cell) -> str:
    return read_gate(cell.spec.options["gate"]).rule


def _acted(row: Row) -> float | None:
    return sum(row.acted.values()) / len(row.acted) if row.acted else None


def _named(cell: Cell) -> str:
    return f"{cell.spec.name} at strength {strength_shown(cell.strength)}"


def _source(cell: Cell) -> dict[str, object]:
    return {name: value for name, value in cell.spec.options.items() if name != "gate"}


def _by_kind(cells: Sequence[Cell]) -> dict[str, list[str]]:
    by_kind: dict[str, list[str]] = {}
    for cell in cells:
        labels = by_kind.setdefault(cell.kl_kind, [])
        if cell.spec.name not in labels:
            labels.append(cell.spec.name)
    return by_kind


def _flat(value: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {item}" for name, item in value.items() if item) or "unknown"


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
