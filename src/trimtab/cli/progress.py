"""How a long command shows itself: lines on standard error, and a bar where that is a terminal."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from trimtab.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.training.run.settings import TrainProgress


class Progress:
    """A bar that counts `what`, and lines above it. Silent unless `active`."""

    def __init__(self, what: str, *, active: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._active = active
        self._bar = Bar(
            *(TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
            console=Console(stderr=True),
            disable=not (active and sys.stderr.isatty()),
            transient=True,
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Progress:
        stream = sys.stderr
        self._bar.start()
        # rich has put a stream of its own in the place of standard error; what is logged goes above the bar too.
        handlers = [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler)]
        self._moved = [(one, stream) for one in handlers if one.stream is stream and sys.stderr is not stream]
        for handler, _ in self._moved:
            handler.setStream(sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._bar.stop()

    def say(self, message: str) -> None:
        """A line on standard error."""
        if not self._active:
            return
        if self._bar.disable:
            options.say(message)
        else:
            self._bar.console.print(message, markup=False, highlight=False, emoji=False)

    def move(self, num_done: int, num_all: int) -> None:
        """How far the bar stands."""
        self._bar.update(self._task, completed=num_done, total=num_all)

    def following(self, line: Callable[[TrainProgress], str]) -> Callable[[TrainProgress], None]:
        """What a training tells its steps to; `line` says how a line of its curve reads."""

        def show(step: TrainProgress) -> None:
            self.move(step.step, step.num_steps)
            if step.metrics:
                self.say(line(step))

        return show
