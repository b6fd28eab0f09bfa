"""What is reported about a trainer's pairs: measured on all pairs since the last report, on every process."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.errors import NotFiniteError, naming
from trimtab.statistics import Interval, proportion_interval
from trimtab.training.pairs.losses import correct

if TYPE_CHECKING:
    from transformers import Trainer


class PairMeter:
    """Collects rewards and losses of pairs, and makes lines of the curve of them.

    `margin_scale` turns a difference of rewards into the log-odds of the preference; `names` are what the mean rewards
    of chosen and rejected answers are called. Training and evaluation are kept apart.
    """

    def __init__(
        self,
        *,
        margin_scale: float = 1.0,
        names: tuple[str, str] = ("reward_chosen", "reward_rejected"),
        prompts: Sequence[Hashable] = (),
    ) -> None:
        self._scale = margin_scale
        self._names = names
        self._parts: dict[bool, list[Tensor]] = {True: [], False: []}
        self._num_tokens = 0
        self._clock = time.monotonic()
        self.prompts = prompts
        """The prompt of each pair of the evaluation, in its order: pairs of one prompt are not independent trials."""
        self.outcomes: list[bool] = []
        """Whether the last evaluation, in this process, ranks each pair as it was labelled."""

    def accuracy(self) -> Interval:
        """The share of the evaluation's pairs that are ranked as they were labelled; its interval is over prompts."""
        return proportion_interval(self.outcomes, self.prompts)

    def add(self, trainer: Trainer, chosen: Tensor, rejected: Tensor, loss: Tensor, num_tokens: int) -> None:
        """[B] rewards and losses of a batch's pairs, and how many tokens went through the model."""
        training = trainer.model.training
        # Evaluation pads its last batch with repeats, which gather_for_metrics takes out again.
        gather = trainer.accelerator.gather if training else trainer.accelerator.gather_for_metrics
        table = torch.stack([part.detach().float() for part in (chosen, rejected, loss)], dim=1)
        self._parts[training].append(gather(table).cpu())
        self._num_tokens += num_tokens

    def open_window(self) -> list[list[float]]:
        """Chosen reward, rejected reward and loss of each training pair since the last report."""
        return torch.cat(self._parts[True]).tolist() if self._parts[True] else []

    def reopen_window(self, rows: list[list[float]]) -> None:
        """Continue from `open_window`."""
        self._parts[True] = [torch.tensor(rows, dtype=torch.float32)] if rows else []

    def report(self, trainer: Trainer, logs: dict[str, float]) -> None:
        """Add what was measured since the last report to `logs`. Raises NotFiniteError for a NaN loss."""
        evaluating = any(key.startswith("eval_") for key in logs)
        parts, self._parts[not evaluating] = self._parts[not evaluating], []
        if not parts:
            return
        prefix = "eval_" if evaluating else ""
        table = torch.cat(parts)
        if evaluating:
            self.outcomes = correct(table[:, 0], table[:, 1]).tolist()
        measured = self._measures(table, trainer.accelerator.num_processes)
        if not math.isfinite(measured["loss"]):
            raise naming(
                NotFiniteError,
                "The loss is {0} at step {1}. Start anew (--overwrite) with a lower {learning_rate}, or in float32.",
                *(measured["loss"], trainer.state.global_step),
            )
        logs.update({f"{prefix}{name}": value for name, value in measured.items()})

    def _measures(self, table: Tensor, num_processes: int) -> dict[str, float]:
        """From [N, 3] (chosen, rejected, loss) of N pairs."""
        chosen, rejected, loss = table.double().unbind(dim=1)
        now, started = time.monotonic(), self._clock
        tokens, self._num_tokens, self._clock = self._num_tokens, 0, now
        # A single process knows its own tokens; the others' batches are of like size.
        rate = num_processes / max(now - started, 1e-9)
        return {
            "loss": float(loss.mean()),
            "accuracy": float(correct(chosen, rejected).double().mean()),
            "num_correct": int(correct(chosen, rejected).sum()),
            "num_pairs": len(table),
            "margin": float(self._scale * (chosen - rejected).mean()),
            self._names[0]: float(chosen.mean()),
            self._names[1]: float(rejected.mean()),
            "pairs_per_s": len(table) / max(now - started, 1e-9),
            "tokens_per_s": tokens * rate,
        }
