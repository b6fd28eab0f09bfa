"""What is reported about a trainer's pairs: measured on all pairs since the last report, on every process."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.statistics import Interval, proportion_interval
from trimtab.training.pairs.losses import correct
from trimtab.training.run.meter import Meter

if TYPE_CHECKING:
    from transformers import Trainer


class PairMeter(Meter):
    """Collects rewards and losses of pairs, and makes lines of the curve of them.

    `margin_scale` turns a difference of rewards into the log-odds of the preference; `names` are what the mean rewards
    of chosen and rejected answers are called.
    """

    unit = "pairs"

    def __init__(
        self,
        *,
        margin_scale: float = 1.0,
        names: tuple[str, str] = ("reward_chosen", "reward_rejected"),
        prompts: Sequence[Hashable] = (),
    ) -> None:
        super().__init__()
        self._scale = margin_scale
        self._names = names
        self.prompts = prompts
        """The prompt of each pair of the evaluation, in its order: pairs of one prompt are not independent trials."""
        self.outcomes: list[bool] = []
        """Whether the last evaluation, in this process, ranks each pair as it was labelled."""

    def accuracy(self) -> Interval:
        """The share of the evaluation's pairs that are ranked as they were labelled; its interval is over prompts."""
        return proportion_interval(self.outcomes, self.prompts)

    def add(self, trainer: Trainer, chosen: Tensor, rejected: Tensor, loss: Tensor, num_tokens: int) -> None:
        """[B] rewards and losses of a batch's pairs, and how many tokens went through the model."""
        self.collect(
            trainer, torch.stack([part.detach().float() for part in (chosen, rejected, loss)], dim=1), num_tokens
        )

    def evaluated(self, table: Tensor) -> None:
        """Whether each pair of an evaluation is ranked as it was labelled, from [N, 3]."""
        self.outcomes = correct(table[:, 0], table[:, 1]).tolist()

    def measures(self, table: Tensor) -> dict[str, float]:
        """From [N, 3] (chosen, rejected, loss) of N pairs."""
        chosen, rejected, loss = table.double().unbind(dim=1)
        return {
            "loss": float(loss.mean()),
            "accuracy": float(correct(chosen, rejected).double().mean()),
            "num_correct": int(correct(chosen, rejected).sum()),
            "num_pairs": len(table),
            "margin": float(self._scale * (chosen - rejected).mean()),
            self._names[0]: float(chosen.mean()),
            self._names[1]: float(rejected.mean()),
        }
