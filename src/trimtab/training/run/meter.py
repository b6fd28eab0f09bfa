"""What is reported about a trainer's examples: measured on all of them since the last report, on every process."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.errors import NotFiniteError, naming

if TYPE_CHECKING:
    from transformers import Trainer


class Meter(ABC):
    """Collects a row of numbers for each example, and makes lines of the curve of them.

    Training and evaluation are kept apart. A subclass says what the numbers are and what is made of them.
    """

    unit: str
    """What an example is, in names such as `pairs_per_s`."""

    def __init__(self) -> None:
        self._parts: dict[bool, list[Tensor]] = {True: [], False: []}
        self._num_tokens = 0
        self._clock = time.monotonic()

    def collect(self, trainer: Trainer, table: Tensor, num_tokens: int) -> None:
        """[B, C] numbers of a batch's examples, and how many tokens went through the model."""
        training = trainer.model.training
        # Evaluation pads its last batch with repeats, which gather_for_metrics takes out again.
        gather = trainer.accelerator.gather if training else trainer.accelerator.gather_for_metrics
        self._parts[training].append(gather(table.detach().float()).cpu())
        self._num_tokens += num_tokens

    def open_window(self) -> list[list[float]]:
        """The numbers of each training example since the last report."""
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
            self.evaluated(table)
        measured = {**self.measures(table), **self._rates(len(table), trainer.accelerator.num_processes)}
        if not math.isfinite(measured["loss"]):
            raise naming(
                NotFiniteError,
                "The loss is {0} at step {1}. Start anew (--overwrite) with a lower {learning_rate}, or in float32.",
                *(measured["loss"], trainer.state.global_step),
            )
        logs.update({f"{prefix}{name}": value for name, value in measured.items()})

    @abstractmethod
    def measures(self, table: Tensor) -> dict[str, float]:
        """From [N, C], the numbers of N examples; `loss` is among them."""

    @abstractmethod
    def evaluated(self, table: Tensor) -> None:
        """Keep what is asked about the last evaluation: [N, C] of its examples."""

    def _rates(self, num_examples: int, num_processes: int) -> dict[str, float]:
        now, started = time.monotonic(), self._clock
        tokens, self._num_tokens, self._clock = self._num_tokens, 0, now
        # A single process knows its own tokens; the others' batches are of like size.
        rate = num_processes / max(now - started, 1e-9)
        return {
            f"{self.unit}_per_s": num_examples / max(now - started, 1e-9),
            "tokens_per_s": tokens * rate,
        }
