"""A guide at every form and strength on validation prompts: the comparison that a calibration decides on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trimtab.errors import DataError, OptionError, naming
from trimtab.evaluation.comparison.recipe import MEASURED, TRAINED_ON
from trimtab.evaluation.comparison.summary import Cell
from trimtab.evaluation.report.results import Results
from trimtab.making.calibration import Base, Decision, Point
from trimtab.methods.ways import WAYS, Way
from trimtab.storage.calibrated import Calibration
from trimtab.storage.cards import GUIDE_KINDS
from trimtab.storage.scorers import SCORERS, is_function_name
from trimtab.training.run.rewards import AgentReward

TRIED: Mapping[str, tuple[float, ...]] = {
    "agent": (0.3, 0.5, 0.7, 0.8, 0.9),
    "arm": (0.5, 1.0, 2.0, 4.0, 8.0),
    "head": (0.5, 1.0, 2.0, 4.0, 8.0),
    "policy": (0.5, 1.0, 2.0, 4.0, 8.0),
    "prompt": (0.5, 1.0, 2.0, 4.0, 8.0),
    "reward": (0.5, 1.0, 2.0, 4.0, 8.0),
}
"""Kind of a guide -> the strengths that are tried where nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is to be tried."""

    guide: str
    kind: str
    model: str
    prompts: Mapping[str, object]
    """As a recipe says it: `path` or `builtin`."""
    rewards: Sequence[AgentReward]
    """Their sum is what the guide was trained for; empty where that is not known, and `golds` decide."""
    golds: Sequence[AgentReward] = ()
    """Their sum decides, where there are any."""
    strengths: Sequence[float] = ()
    """Empty: those of the kind."""
    forms: Sequence[str] = ()
    """Empty: all that the guide has."""
    guide_base: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    """What else the recipe says: dtype, template, decoding, seeds, batch size."""

    @property
    def ways(self) -> list[Way]:
        """The methods that run the guide. Raises OptionError for a guide or a form that has none."""
        ways = WAYS[self.kind]
        if not ways:
            raise OptionError(
                f"{self.guide} is {GUIDE_KINDS[self.kind].what}: it runs at a preference of several numbers, and a "
                "calibration is of one strength. Compare preferences with `trimtab compare` (method parm)."
            )
        known = [way.form for way in ways if way.form is not None]
        for form in self.forms:
            if form not in known:
                accepted = f"accepted: {', '.join(known)}" if known else "it has none; leave forms out"
                raise OptionError(
                    f"{self.guide} ({GUIDE_KINDS[self.kind].what}) cannot be run as a {form}; {accepted}."
                )
        return [way for way in ways if not self.forms or way.form in self.forms]

    @property
    def tried(self) -> tuple[float, ...]:
        """The strengths, in their order. Raises OptionError for one that is not above 0, or too few of them."""
        return in_order(self.strengths or TRIED[self.kind])

    def recipe(self) -> dict[str, object]:
        """The comparison, as a recipe file would say it. Raises OptionError as the parts do."""
        names = [reward.name for reward in (*self.rewards, *self.golds)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise OptionError(
                f"Two rewards are named {twice[0]!r}; give each a name of its own, as NAME=SOURCE, and another reward "
                "as the gold one than as the one that the guide was trained for."
            )
        entries = [way.entry(way.form or "strength", self.guide, self.tried) for way in self.ways]
        if self.guide_base is not None:
            entries = [{**entry, "guide_base": self.guide_base} for entry in entries]
        role = TRAINED_ON if self.kind != "prompt" else MEASURED
        return {
            "title": f"{self.model}, frozen, with {self.guide} at every strength, on validation prompts",
            "model": self.model,
            "prompts": {"test": dict(self.prompts)},
            "rewards": {
                **{reward.name: _reward(reward, role) for reward in self.rewards},
                **{reward.name: _reward(reward, MEASURED) for reward in self.golds},
            },
            "methods": [{"method": "base"}, *entries],
            **self.settings,
        }


def _reward(reward: AgentReward, role: str) -> dict[str, object]:
    return {"scorer": reward_source(reward), "weight": reward.multiplier, "role": role}


def reward_source(reward: AgentReward) -> str:
    """What a recipe calls a reward: a directory of a bare name is written as a path, which a name is not."""
    source = str(reward.source)
    bare = "/" not in source and source not in SCORERS and not is_function_name(source) and ":" not in source
    return f"./{source}" if bare else source


def points_of(results: Results, sweep: Sweep) -> tuple[Base, list[Point]]:
    """What a run of the sweep's recipe measured, prompt by prompt. Raises DataError where an answer is missing."""
    prompts = {index for cell in results.cells for index in cell.by_prompt(lambda row: 0.0) or {}}
    base: Base | None = None
    points = []
    for cell in results.cells:
        gold = _sums(cell, sweep.golds, prompts) if sweep.golds else None
        reward = _sums(cell, sweep.rewards or sweep.golds, prompts)
        if cell.spec == results.recipe.baseline:
            base = Base(reward, gold)
            continue
        kl = cell.by_prompt(lambda row: row.kl)
        if kl is None:
            raise DataError(f"the KL of {cell.spec.name} is not known, so nothing can be calibrated by it.")
        assert not isinstance(cell.strength, tuple)
        form = cell.spec.name if len(sweep.ways) > 1 or sweep.ways[0].form else ""
        points.append(Point(form, cell.strength, reward, [kl[index] for index in sorted(prompts)], gold))
    if base is None:
        raise DataError("the model without the guide has not answered yet; run the comparison to its end.")
    return base, points


def _sums(cell: Cell, rewards: Sequence[AgentReward], prompts: set[int]) -> list[float]:
    """The sum of some rewards of each prompt; a row has them multiplied already."""
    found = cell.by_prompt(lambda row: sum(row.rewards[reward.name] for reward in rewards))
    if found is None or set(found) != prompts:
        raise DataError(
            f"answers are missing at {cell.spec.name} {cell.strength}; run the comparison to its end (--resume)."
        )
    return [found[index] for index in sorted(prompts)]


def calibration_of(decision: Decision, sweep: Sweep, *, max_new_tokens: int, date: str) -> Calibration | None:
    """What a card says of a decision; None where nothing is named."""
    peak = decision.chosen
    if peak is None:
        return None
    names = [" + ".join(reward.name for reward in rewards) for rewards in (sweep.rewards, sweep.golds)]
    return Calibration(
        form=peak.form or None,
        strength=peak.strength,
        strength_low=peak.low,
        strength_high=peak.high,
        reward=names[0],
        gold=names[1] or None,
        gain=peak.gain.value,
        gain_low=peak.gain.low,
        gain_high=peak.gain.high,
        kl=peak.kl.value,
        kl_low=peak.kl.low,
        kl_high=peak.kl.high,
        over_optimised=peak.over_optimised,
        num_prompts=decision.num_prompts,
        model=sweep.model,
        max_new_tokens=max_new_tokens,
        date=date,
        tried={way.form or "": list(sweep.tried) for way in sweep.ways},
    )


def in_order(strengths: Sequence[float]) -> tuple[float, ...]:
    """Each strength once, in order. Raises OptionError for one that is not above 0, or too few to have a peak."""
    ordered = tuple(sorted(set(strengths)))
    if ordered[0] <= 0:
        raise naming(OptionError, "{strengths} has {0}; a calibration looks for a peak above 0.", ordered[0])
    if len(ordered) < 2:
        template = "{strengths} names one strength; a peak needs a strength beyond it. Give two at least."
        raise naming(OptionError, template)
    return ordered
