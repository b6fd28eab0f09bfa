"""What the rows of a comparison say: means over prompts with their intervals, differences to the base, what was chosen.

A prompt's seeds are averaged first, so that prompts are what is resampled. Fewer than `MIN_PROMPTS` prompts give a mean
and no interval: a bootstrap over a handful of values is not an interval, however it is computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trimtab.evaluation.comparison.recipe import MethodSpec, Recipe
from trimtab.evaluation.comparison.records import Key, Row
from trimtab.evaluation.comparison.text_metrics import diversity, repetition
from trimtab.methods.method import Strength
from trimtab.statistics import mean_interval

MIN_PROMPTS = 10
REPETITION_N = 4

Read = Callable[[Row], "float | None"]

MEASURES: Mapping[str, Read] = {
    "kl": lambda row: row.kl,
    "kl_per_token": lambda row: None if row.kl is None else row.kl / max(1, row.num_tokens),
    "base_nats": lambda row: None if row.base_logprob is None else -row.base_logprob,
    "length": lambda row: float(row.num_tokens),
    "repetition": lambda row: repetition(row.token_ids, REPETITION_N),
    "diversity": lambda row: diversity(row.token_ids),
    "cut": lambda row: float(row.finish_reason == "length"),
}
"""Name -> what it reads off a row; None: unknown there."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts, with its 95 % interval where there are prompts enough."""

    value: float
    low: float | None
    high: float | None
    num_prompts: int

    @property
    def clear_of_zero(self) -> bool:
        """Whether there is an interval and it leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class Cell:
    """A method at a strength, on the prompts of a split."""

    spec: MethodSpec
    strength: Strength
    rows: tuple[Row, ...]

    @property
    def kl_kind(self) -> str:
        return self.rows[0].kl_kind

    @property
    def num_prompts(self) -> int:
        return len({row.key.prompt_index for row in self.rows})

    def by_prompt(self, read: Read) -> dict[int, float] | None:
        """Prompt -> mean over its seeds; None where a row does not know."""
        values_of: dict[int, list[float]] = defaultdict(list)
        for row in self.rows:
            value = read(row)
            if value is None:
                return None
            values_of[row.key.prompt_index].append(value)
        return {index: sum(values) / len(values) for index, values in sorted(values_of.items())}

    def mean(self, read: Read) -> float | None:
        """The mean over prompts, without an interval."""
        values = self.by_prompt(read)
        return None if not values else sum(values.values()) / len(values)


@dataclass(frozen=True, slots=True)
class Measured:
    """A cell in numbers."""

    cell: Cell
    rewards: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]
    """Reward -> mean paired difference to the base on the prompts that both answered; empty for the base itself."""
    measures: Mapping[str, Estimate | None]
    """`MEASURES` and `coherence`; None: unknown."""
    joint: Estimate | None = None
    """`joint_rate` over the recipe's `joint` rewards; None for the base, and where the recipe has one reward."""

    @property
    def label(self) -> str:
        return self.cell.spec.name

    @property
    def strength(self) -> Strength:
        return self.cell.strength

    @property
    def kl(self) -> Estimate | None:
        return self.measures["kl"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The strength that a method is reported at."""

    strength: Strength | None
    """None: no strength kept to the budget."""
    why: str


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value a prompt, with a BCa bootstrap interval from `MIN_PROMPTS` prompts on."""
    if len(values) < MIN_PROMPTS:
        return Estimate(sum(values) / len(values), None, None, len(values))
    interval = mean_interval(values)
    return Estimate(interval.value, interval.low, interval.high, len(values))


def reward_of(name: str) -> Read:
    """What reads a reward off a row."""
    return lambda row: row.rewards[name]


def cells_of(recipe: Recipe, rows: Sequence[Row], split: str) -> list[Cell]:
    """The cells of a split that have an answer, in the recipe's order; rows of other methods are left alone."""
    rows_at: dict[tuple[str, Strength], list[Row]] = defaultdict(list)
    for row in rows:
        if row.key.split == split and row.key.seed in recipe.seeds:
            rows_at[row.key.method, row.key.strength].append(row)
    return [
        Cell(spec, strength, tuple(rows_at[spec.name, strength]))
        for spec in recipe.methods
        for strength in spec.strengths
        if (spec.name, strength) in rows_at
    ]


def measured(recipe: Recipe, cells: Sequence[Cell], coherences: Mapping[Key, float]) -> list[Measured]:
    """Every cell in numbers. `coherences` may be empty: then it is unknown."""
    base = next((cell for cell in cells if cell.spec == recipe.baseline), None)
    return [_measured(recipe, cell, base, coherences) for cell in cells]


def paired(cell: Cell, other: Cell, read: Read) -> Estimate | None:
    """The mean difference of two cells on the prompts that both answered; None where there is none."""
    values, others = cell.by_prompt(read), other.by_prompt(read)
    if values is None or others is None:
        return None
    differences = [value - others[index] for index, value in values.items() if index in others]
    return estimate(differences) if differences else None


def joint_rate(cell: Cell, other: Cell, rewards: Sequence[str]) -> Estimate | None:
    """The share of answers that have more of every reward than the other's under the same prompt and seed.

    Two means may both rise while no single answer gains in both, one bought with the other. A prompt's seeds are
    averaged first. None where the two share no answer.
    """
    others = {(row.key.prompt_index, row.key.seed): row.rewards for row in other.rows}
    values_of: dict[int, list[float]] = defaultdict(list)
    for row in cell.rows:
        its = others.get((row.key.prompt_index, row.key.seed))
        if its is not None:
            values_of[row.key.prompt_index].append(float(all(row.rewards[name] > its[name] for name in rewards)))
    return estimate([sum(values) / len(values) for _, values in sorted(values_of.items())]) if values_of else None


def choose(recipe: Recipe, cells: Sequence[Cell]) -> dict[str, Chosen]:
    """Label -> the strength of the highest mean main reward on validation prompts, within the KL budget if any.

    `cells` are those of the validation split. A method of one strength has nothing to choose; one of several without
    validation answers is left out. A method whose KL is unknown cannot be held to a budget, and its reason says so.
    """
    read, chosen = reward_of(recipe.main_reward.name), {}
    for spec in recipe.methods:
        at_strengths = [cell for cell in cells if cell.spec == spec]
        if len(spec.strengths) == 1:
            chosen[spec.name] = Chosen(spec.strengths[0], "its only strength")
        elif at_strengths:
            chosen[spec.name] = _chosen(at_strengths, read, recipe.kl_budget)
    return chosen


def headline(recipe: Recipe, cells: Sequence[Cell], chosen: Mapping[str, Chosen]) -> str | None:
    """The label of the method with the highest mean gain over the base on validation prompts, at its chosen strength.

    `cells` are those of the validation split. Test prompts have no say, so what they then say of it is not flattered by
    the choice. None where no other method than the base has validation answers.
    """
    base = next((cell for cell in cells if cell.spec == recipe.baseline), None)
    if base is None:
        return None
    read, gains = reward_of(recipe.main_reward.name), {}
    for cell in cells:
        choice = chosen.get(cell.spec.name)
        if cell.spec != recipe.baseline and choice is not None and choice.strength == cell.strength:
            gain = paired(cell, base, read)
            if gain is not None:
                gains[cell.spec.name] = gain.value
    return max(gains, key=gains.__getitem__) if gains else None


def _chosen(cells: Sequence[Cell], read: Read, budget: float | None) -> Chosen:
    def reward(cell: Cell) -> float:
        value = cell.mean(read)
        assert value is not None, "every row has its rewards"
        return value

    if budget is None:
        return Chosen(max(cells, key=reward).strength, "highest on validation prompts")
    kls = [cell.mean(MEASURES["kl"]) for cell in cells]
    if None in kls:
        return Chosen(max(cells, key=reward).strength, "KL unknown, so not held to the budget")
    within = [cell for cell, kl in zip(cells, kls, strict=True) if kl is not None and kl <= budget]
    if not within:
        return Chosen(None, f"no strength keeps to {budget:g} nats on validation prompts")
    return Chosen(max(within, key=reward).strength, f"highest on validation prompts within {budget:g} nats")


def _measured(recipe: Recipe, cell: Cell, base: Cell | None, coherences: Mapping[Key, float]) -> Measured:
    names = [reward.name for reward in recipe.rewards]
    reads: dict[str, Read] = {**MEASURES, "coherence": lambda row: coherences.get(row.key)}
    gains, joint = {}, None
    if base is not None and cell is not base:
        joint = joint_rate(cell, base, recipe.joint) if recipe.joint else None
        gains = {name: gain for name in names if (gain := paired(cell, base, reward_of(name))) is not None}
    return Measured(
        cell,
        rewards={name: _estimated(cell, reward_of(name)) for name in names},
        gains=gains,
        measures={
            name: None if (values := cell.by_prompt(read)) is None else estimate(list(values.values()))
            for name, read in reads.items()
        },
        joint=joint,
    )


def _estimated(cell: Cell, read: Read) -> Estimate:
    values = cell.by_prompt(read)
    assert values, "a cell has rows, and every row its rewards"
    return estimate(list(values.values()))
