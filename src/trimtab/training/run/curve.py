"""The curve of a run: what is reported, and how long it will take."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trimtab.training.run import checkpoints
from trimtab.training.run.pace import duration
from trimtab.training.run.settings import TrainProgress

log = logging.getLogger(__name__)


class _Curve(TrainerCallback):  # type: ignore[misc]  # transformers carries no types here
    """Writes `metrics.jsonl` beside the checkpoints, and tells the caller."""

    def __init__(self, progress: Callable[[TrainProgress], None] | None = None, what: str = "pairs") -> None:
        self._progress = progress
        self._what = what
        self._began: float | None = None
        self._first = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """How much there is to do."""
        self._first = state.global_step + 1
        size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        done = f", {state.global_step:,} of them done" if state.global_step else ""
        log.info("training: %s steps of %s %s%s", f"{state.max_steps:,}", f"{size:,}", self._what, done)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """The first step is timed."""
        if self._began is None:
            self._began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """One more step. The last one always ends a window, so that the curve reaches the end."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        elif state.global_step == self._first and self._began is not None:
            seconds, left = time.monotonic() - self._began, state.max_steps - state.global_step
            log.info(
                "the first step took %s; at this pace the %s that are left take about %s",
                *(duration(seconds), f"{left:,}", duration(seconds * left)),
            )
        self._tell(state, {})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        """One more line of the curve; the trainer's closing summary is none."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        line = {"step": state.global_step, **{key: value for key, value in logs.items() if key not in _NOT_OURS}}
        checkpoints.add_line(Path(args.output_dir), line)
        self._tell(state, line)

    def _tell(self, state: TrainerState, metrics: Mapping[str, float]) -> None:
        if metrics:
            level = logging.INFO if self._progress is None else logging.DEBUG  # who is told shows it
            log.log(level, "step %d of %d: %s", state.global_step, state.max_steps, json.dumps(metrics))
        if self._progress is not None and state.is_world_process_zero:
            self._progress(TrainProgress(state.global_step, state.max_steps, metrics))


def curve(progress: Callable[[TrainProgress], None] | None = None, what: str = "pairs") -> TrainerCallback:
    """The callback of a run that reports to `progress`; `what` a step consists of."""
    return _Curve(progress, what)


_NOT_OURS = {"epoch", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
