"""What the win rate would be if both answers were equally long: AlpacaEval 2's regression (arXiv 2404.04475).

A logistic regression explains the probability that the model's answer is preferred to the baseline's with three terms:
the model (a constant), the length (tanh of the standardised difference in characters), and how hard the instruction is
for the baseline. The win rate is the mean prediction with the length term left out.

As in their package (0.6.6): the penalty is L1, its strength one of ten from 10⁻⁴ to 10⁴ by five-fold cross-validation,
a preference may be any probability, and with `gamed` (their `df_gamed.csv`) answers that the baseline was told to make
longer or shorter keep the length term honest, at a weight of 0.1 a row. The tests hold it to what their package gave on
the same made-up annotations, to 1e-6; it has not been run on their published ones.

What it does not know: the difficulty of instructions is published for AlpacaEval's 805 only (fitted over all models of
their leaderboard). Without it the term is left out, which is what their `length_controlled_minimal` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InputError, MissingExtraError
from trimtab.statistics import Interval

Array = NDArray[np.float64]

NUM_FOLDS = 5
NUM_RESAMPLES = 500
_STRENGTHS = np.logspace(-4, 4, 10)
_GAMED_WEIGHT = 0.2 / 2
_NO_WEIGHT = 1e-300
_SEED = 123
"""The seed of the solver's order of coordinates, as in AlpacaEval."""


@dataclass(frozen=True, slots=True)
class GamedRow:
    """A row of AlpacaEval's `df_gamed.csv`: the baseline against itself, told to be longer or shorter."""

    preference: float
    """From 0 to 1: for the changed answer."""
    std_delta_len: float
    instruction_difficulty: float


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The win rate at equal length, and what the regression found."""

    win_rate: Interval
    """From 0 to 1; 95 % percentile bootstrap over the prompts, at the penalty that was chosen once."""
    length_coefficient: float
    """Weight of tanh((baseline's length − model's) / its deviation): negative where the judge likes longer answers."""
    model_coefficient: float
    """0 where the penalty leaves no term for the model: too few examples to tell, or no difference."""
    difficulty_coefficient: float | None
    num_examples: int
    """Those with a preference."""


def length_controlled_win_rate(
    preferences: Sequence[float | None],
    lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    *,
    difficulty: Sequence[float] | None = None,
    gamed: Sequence[GamedRow] = (),
    prompts: Sequence[Hashable] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> LengthControlled:
    """The length-controlled win rate over examples.

    `preferences` are from 0 (the baseline's answer) to 1 (the model's), ½ for a tie, None for no verdict: such examples
    are predicted and not learnt from, as theirs. Lengths are in characters. `prompts` is a label each: examples with
    the same one share a prompt (None: none do), and the interval resamples prompts. Raises InputError for fewer than
    five preferences or a value out of range, MissingExtraError without scikit-learn.
    """
    _check(preferences, lengths, baseline_lengths, difficulty, gamed, prompts)
    delta = np.asarray(baseline_lengths, dtype=np.float64) - np.asarray(lengths, dtype=np.float64)
    spread = float(delta.std(ddof=1))
    features = [np.tanh(delta / spread) if spread > 0 else np.zeros_like(delta), np.ones_like(delta)]
    if difficulty is not None:
        features.insert(1, np.asarray(difficulty, dtype=np.float64))
    table = np.stack(features, axis=1)
    wanted = np.array([np.nan if value is None else value for value in preferences], dtype=np.float64)
    known = ~np.isnan(wanted)
    rows = _Rows(table[known], wanted[known], np.ones(int(known.sum()))).after(_gamed_rows(gamed))
    strength = _chosen_strength(rows)
    coefficients = _fit(rows, strength)
    level = table.copy()
    level[:, 0] = 0.0
    labels = np.unique(list(map(str, range(len(wanted)) if prompts is None else prompts)), return_inverse=True)[1]
    resampled = _resampled(rows, len(gamed), level[known], labels[known], strength, num_resamples, seed)
    value = float(_predicted(level, coefficients).mean())
    low, high = (value, value) if not len(resampled) else np.quantile(resampled, [0.025, 0.975])
    return LengthControlled(
        Interval(value, float(low), float(high)),
        length_coefficient=float(coefficients[0]),
        model_coefficient=float(coefficients[-1]),
        difficulty_coefficient=None if difficulty is None else float(coefficients[1]),
        num_examples=int(known.sum()),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is learnt from: [N, M] features, [N] probabilities, [N] weights."""

    features: Array
    targets: Array
    weights: Array

    def after(self, other: _Rows | None) -> _Rows:
        if other is None:
            return self
        pairs = (
            (other.features, self.features),
            (other.targets, self.targets),
            (other.weights, self.weights),
        )
        return _Rows(*(np.concatenate(pair) for pair in pairs))

    def pick(self, indices: NDArray[np.int64]) -> _Rows:
        return _Rows(self.features[indices], self.targets[indices], self.weights[indices])


def _gamed_rows(gamed: Sequence[GamedRow]) -> _Rows | None:
    if not gamed:
        return None
    features = [[np.tanh(row.std_delta_len), row.instruction_difficulty, 0.0] for row in gamed]
    targets = [row.preference for row in gamed]
    return _Rows(np.array(features), np.array(targets), np.full(len(gamed), _GAMED_WEIGHT))


def _chosen_strength(rows: _Rows) -> float:
    """The inverse penalty with the smallest log loss on what was held out; of equals the first."""
    # As their grouped folds fall in scikit-learn 1.9, which sorts equal groups stably: the last example is in the first
    # fold. Before, where an example fell depended on numpy's sort, and so on the processor.
    num = len(rows.targets)
    folds = (num - 1 - np.arange(num)) % NUM_FOLDS
    losses = np.zeros((NUM_FOLDS, len(_STRENGTHS)))
    for fold in range(NUM_FOLDS):
        learnt, held_out = rows.pick(np.flatnonzero(folds != fold)), rows.pick(np.flatnonzero(folds == fold))
        # One state for all penalties of a fold, as in scikit-learn's own path: what a fit leaves, the next begins with.
        state = np.random.RandomState(_SEED)
        for column, strength in enumerate(_STRENGTHS):
            losses[fold, column] = _log_loss(held_out, _fit(learnt, float(strength), state))
    return float(_STRENGTHS[np.argmin(losses.mean(axis=0))])


def _fit(rows: _Rows, strength: float, state: int | np.random.RandomState = _SEED) -> Array:
    """[M] coefficients of the penalised regression, as far as the solver comes in its hundred rounds, as theirs."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "judge", "The length-controlled win rate") from error

    model = LogisticRegression(l1_ratio=1.0, C=strength, solver="liblinear", fit_intercept=False, random_state=state)
    labels = np.repeat([1, 0], len(rows.targets))
    sides = [rows.targets * rows.weights, (1 - rows.targets) * rows.weights]
    for side in sides:  # liblinear complains on standard error of a class without weight, as after a clean sweep
        side[0] = side[0] if side.any() else _NO_WEIGHT
    weights = np.concatenate(sides)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.tile(rows.features, (2, 1)), labels, sample_weight=weights)
    coefficients: Array = model.coef_[0]
    return coefficients


def _predicted(features: Array, coefficients: Array) -> Array:
    """[N] probabilities that the model's answer is preferred."""
    result: Array = 1 / (1 + np.exp(-features @ coefficients))
    return result


def _log_loss(rows: _Rows, coefficients: Array) -> float:
    chance = np.clip(_predicted(rows.features, coefficients), 1e-15, 1 - 1e-15)
    losses = rows.targets * np.log(chance) + (1 - rows.targets) * np.log(1 - chance)
    return -float(np.mean(losses * rows.weights))


def _resampled(
    rows: _Rows,
    num_gamed: int,
    level: Array,
    prompts: NDArray[np.intp],
    strength: float,
    num_resamples: int,
    seed: int,
) -> Array:
    """[num_resamples] win rates of resampled prompts, with all their examples; the gamed rows stay as they are."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(prompts == prompt) for prompt in np.unique(prompts)]
    found = []
    for _ in range(num_resamples):
        drawn = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
        coefficients = _fit(rows.pick(np.concatenate([np.arange(num_gamed), num_gamed + drawn])), strength)
        found.append(float(_predicted(level[drawn], coefficients).mean()))
    return np.array(found)


def _check(
    preferences: Sequence[float | None],
    lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    difficulty: Sequence[float] | None,
    gamed: Sequence[GamedRow],
    prompts: Sequence[Hashable] | None,
) -> None:
    given = (preferences, lengths, baseline_lengths, difficulty, prompts)
    sizes = {len(column) for column in given if column is not None}
    if len(sizes) > 1:
        raise InputError(
            f"There are {sorted(sizes)} preferences, lengths, difficulties and prompts; give one each an example."
        )
    known = [value for value in preferences if value is not None]
    if len(known) < NUM_FOLDS:
        raise InputError(
            f"A length-controlled win rate needs at least {NUM_FOLDS} verdicts, got {len(known)}. Judge more prompts."
        )
    if not all(0 <= value <= 1 for value in known):
        raise InputError("A preference is not between 0 (the baseline) and 1 (the model).")
    if gamed and difficulty is None:
        raise InputError("AlpacaEval's gamed rows go with the difficulty of each instruction; give that too.")
