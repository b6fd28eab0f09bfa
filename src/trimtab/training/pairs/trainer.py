"""What trainers on preference pairs share: the order of their rows, and a report on all pairs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from datasets import Dataset
from transformers import PreTrainedModel, Trainer

from trimtab.training.pairs.batches import Length, evaluation_order, longer_length, training_order
from trimtab.training.pairs.tokens import TokenPair

if TYPE_CHECKING:
    from trimtab.statistics import Interval
    from trimtab.training.pairs.meter import PairMeter
    from trimtab.training.run.settings import PairSettings

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""The columns of a data set of pairs."""


class PairTrainer(Trainer):  # type: ignore[misc]  # transformers carries no types here
    """A trainer whose lines of the curve are its `meter`'s: measured on all pairs, on every process.

    It stands before TRL's trainer among a class's bases.
    """

    meter: PairMeter

    @property
    def is_evaluated(self) -> bool:
        """Whether this process has evaluated the held-out pairs."""
        return bool(self.meter.outcomes)

    @property
    def num_held_prompts(self) -> int:
        """How many different prompts the held-out pairs have."""
        return len(set(self.meter.prompts))

    def accuracy(self) -> Interval:
        """The last evaluation's accuracy, with its interval over prompts."""
        return self.meter.accuracy()

    def open_window(self) -> dict[str, object]:
        """What was measured since the last report."""
        return {"pairs": self.meter.open_window()}

    def reopen_window(self, window: Mapping[str, list[list[float]]]) -> None:
        """Continue from `open_window`."""
        self.meter.reopen_window(window["pairs"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was measured on all pairs since the last report. Raises NotFiniteError for a NaN loss."""
        self.meter.report(self, logs)
        super().log(logs, start_time)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is now, beside itself, which no training changes: what all weights are compared with."""
    twin: PreTrainedModel = copy.deepcopy(model).eval().requires_grad_(False)
    return twin


def pairs_to_train_on(
    pairs: Sequence[TokenPair],
    settings: PairSettings,
    world_size: int,
    *,
    share_rows: bool = False,
    length: Length = longer_length,
) -> list[TokenPair]:
    """Pairs in the order of training, in whole steps; `share_rows` keeps those of one response together."""
    order = training_order(
        pairs,
        num_pairs=max(1, round(settings.epochs * len(pairs))),
        step_size=settings.batch_size * settings.gradient_accumulation * world_size,
        micro_size=settings.batch_size,
        seed=settings.seed,
        share_rows=share_rows,
        length=length,
    )
    return [pairs[index] for index in order]


def pairs_to_measure_on(pairs: Sequence[TokenPair], columns: Sequence[str] = IDS) -> Dataset | None:
    """Held-out pairs as a data set in the order of evaluation; None where there are none."""
    return pair_dataset([pairs[index] for index in evaluation_order(pairs)], columns) if pairs else None


def pair_dataset(pairs: Sequence[TokenPair], columns: Sequence[str] = IDS) -> Dataset:
    """Pairs as a data set of columns of ids."""
    return Dataset.from_dict({name: [list(getattr(pair, name)) for pair in pairs] for name in columns})
