"""How training shows itself: the curve as lines, and a bar where standard error is a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from trimtab.cli import options

if TYPE_CHECKING:
    from trimtab.training.run.settings import TrainProgress


class Progress:
    """Lines and a bar on standard error; `line` says how a line of the curve reads. Silent unless `active`."""

    def __init__(self, what: str, line: Callable[[TrainProgress], str], *, active: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._active = active
        self._line = line
        self._bar = Bar(
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
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
            self._bar.console.print(message, markup=False, highlight=False)

    def show(self, progress: TrainProgress) -> None:
        """One step, or one line of the curve."""
        self._bar.update(self._task, completed=progress.step, total=progress.num_steps)
        if progress.metrics:
            self.say(self._line(progress))
