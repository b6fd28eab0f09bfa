"""When a run of TRL's trainers is saved: by steps, by minutes, at its last step, and when it is asked to end.

A checkpoint may stand anywhere in a window of the curve, so beside what transformers saves it holds the window that is
open (`window.json`): a run that goes on from it draws the very same line. It is sealed last.

In a process group every process does the same at the same step: all end where one was asked to, and the first one's
clock counts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trimtab.storage.files import write_text
from trimtab.training.run import checkpoints
from trimtab.training.run.cadence import Clock
from trimtab.training.run.interruption import Interruption
from trimtab.training.run.settings import RunSettings

log = logging.getLogger(__name__)

_WINDOW = "window.json"


class Windowed(Protocol):
    """A trainer that reports on windows of steps."""

    def open_window(self) -> Mapping[str, Any]:
        """What was measured since the last line of the curve, for JSON."""

    def reopen_window(self, window: Mapping[str, Any]) -> None:
        """Continue from `open_window`."""


class SavedTrainer(Windowed, Protocol):
    """What is saved: transformers' trainer, which reports on windows of steps."""

    args: TrainingArguments
    state: TrainerState
    model_wrapped: nn.Module

    def add_callback(self, callback: TrainerCallback) -> None:
        """Ask it too where a step ends."""

    def _save_checkpoint(self, model: nn.Module, trial: None) -> None: ...


class StopMeasuring(Exception):  # noqa: N818 - nobody sees it
    """The measurement at the end was interrupted."""


class Saving:
    """Saves and seals a trainer's checkpoints and ends its training, as the settings and an interruption say."""

    def __init__(
        self, trainer: SavedTrainer, settings: RunSettings, interruption: Interruption, start: Path | None
    ) -> None:
        self._trainer = trainer
        self._settings = settings
        self._interruption = interruption
        self._start = start
        self._clock = Clock(settings.save_minutes)
        self._training = False
        self._began = 0.0
        self.stopped = False
        """Whether the training was ended before its time, with a checkpoint."""
        trainer.add_callback(_Hooks(self))

    def begin(self) -> None:
        """The training begins: go on with the window that was open."""
        self._training = True
        if self._start is not None and (self._start / _WINDOW).exists():
            self._trainer.reopen_window(json.loads((self._start / _WINDOW).read_text(encoding="utf-8")))

    def end(self) -> None:
        """The training has ended: what is evaluated from now on is the result."""
        self._training = False

    def after_step(self, state: TrainerState, control: TrainerControl) -> None:
        """Decide whether this step is saved, and whether it is the last."""
        every, minutes = self._settings.save_steps, self._settings.save_minutes
        asked, due = self._agreed(self._interruption.asked, self._clock.is_due)
        is_last = state.global_step >= state.max_steps
        if due or (every and state.global_step % every == 0) or (is_last and (every or minutes)):
            control.should_save = True
        self._stop(control, asked)

    def after_evaluation(self, control: TrainerControl) -> None:
        """An evaluation takes long: whoever asked meanwhile waits for its end and not for another step."""
        if self._training:
            self._stop(control, self._agreed(self._interruption.asked)[0])

    def after_prediction(self) -> None:
        """What is measured at the end is measured again by the run that goes on. Raises StopMeasuring."""
        if not self._training and self._agreed(self._interruption.asked)[0]:
            raise StopMeasuring

    def seal(self, directory: str, state: TrainerState) -> None:
        """Seal the checkpoint once every process has written its part."""
        checkpoint = Path(directory) / f"checkpoint-{state.global_step}"
        group = PartialState()
        if state.is_world_process_zero:
            write_text(checkpoint / _WINDOW, json.dumps(self._trainer.open_window()))
        group.wait_for_everyone()
        if state.is_world_process_zero:
            checkpoints.seal(checkpoint)
        self._clock.wrote(self._began)
        log.debug("checkpoint after step %d", state.global_step)

    def ensure_saved(self) -> None:
        """Write the checkpoint of the step where the trainer stands, where there is none."""
        trainer = self._trainer
        checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        if not self._agreed(checkpoints.is_whole(checkpoint))[0]:
            self._began = self._clock.now()
            trainer._save_checkpoint(trainer.model_wrapped, None)
            self.seal(trainer.args.output_dir, trainer.state)

    def _stop(self, control: TrainerControl, asked: bool) -> None:
        if asked:
            control.should_save = control.should_training_stop = self.stopped = True
        self._began = self._clock.now()

    def _agreed(self, any_of: bool, first_of: bool = False) -> tuple[bool, bool]:
        """What all processes do: the first if any of them has it, the second if the first process has it."""
        group = PartialState()
        if group.num_processes == 1:
            return any_of, first_of
        answers = gather(torch.tensor([[any_of, first_of]], device=group.device, dtype=torch.int32))
        return bool(answers[:, 0].any()), bool(answers[0, 1])


class _Hooks(TrainerCallback):  # type: ignore[misc]  # transformers carries no types here
    """Where transformers' loop asks `Saving`."""

    def __init__(self, saving: Saving) -> None:
        self._saving = saving

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._saving.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._saving.after_step(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._saving.after_evaluation(control)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._saving.after_prediction()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._saving.end()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._saving.seal(args.output_dir, state)
