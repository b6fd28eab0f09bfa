"""How a comparison shows itself: a bar where standard error is a terminal, else a line for each method."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from trimtab.cli import options

if TYPE_CHECKING:
    from trimtab.evaluation.comparison.run import Progress


class AnswerBar:
    """Answers made, of all that the run asks for."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task("answers", total=None)

    def __enter__(self) -> AnswerBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, state: Progress) -> None:
        """One batch more, or another method."""
        self._bar.update(self._task, completed=state.num_done, total=state.num_answers)
        if not state.message:
            return
        text = f"{state.message} ({state.num_done} of {state.num_answers} answers are there)"
        if self._bar.disable:
            options.say(text)
        else:
            self._bar.console.print(text, markup=False, highlight=False, emoji=False)
