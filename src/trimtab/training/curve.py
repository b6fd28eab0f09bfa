"""The curve of a run: what is reported, when a checkpoint is sealed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from trimtab.training import checkpoints
from trimtab.training.settings import TrainProgress

log = logging.getLogger(__name__)


class _Curve(TrainerCallback):  # type: ignore[misc]  # transformers carries no types here
    """Writes `metrics.jsonl` beside the checkpoints, tells the caller, and seals checkpoints."""

    def __init__(self, progress: Callable[[TrainProgress], None] | None = None) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more step."""
        self._tell(state, {})

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """One more line of the curve; the trainer's closing summary is none."""
        if not state.is_world_process_zero or not logs or ("train_runtime" in logs and "accuracy" not in logs):
            return
        line = {"step": state.global_step, **{key: value for key, value in logs.items() if key not in _NOT_OURS}}
        with (Path(args.output_dir) / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._tell(state, line)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the checkpoint once every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _tell(self, state: Any, metrics: Mapping[str, float]) -> None:
        if metrics:
            level = logging.INFO if self._progress is None else logging.DEBUG  # who is told shows it
            log.log(level, "step %d of %d: %s", state.global_step, state.max_steps, json.dumps(metrics))
        if self._progress is not None and state.is_world_process_zero:
            self._progress(TrainProgress(state.global_step, state.max_steps, metrics))


def curve(progress: Callable[[TrainProgress], None] | None = None) -> TrainerCallback:
    """The callback of a run that reports to `progress`."""
    return _Curve(progress)


_NOT_OURS = {"epoch", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
