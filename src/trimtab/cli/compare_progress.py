"""How a comparison shows itself: a bar where standard error is a terminal, else a line for each method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from trimtab.cli import progress

if TYPE_CHECKING:
    from trimtab.evaluation.comparison.run import Progress


class AnswerBar:
    """Answers made, of all that the run asks for."""

    def __init__(self) -> None:
        self._bar = progress.Progress("answers")

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()

    def show(self, state: Progress) -> None:
        """One batch more, or another method."""
        self._bar.move(state.num_done, state.num_answers)
        if state.message:
            self._bar.say(f"{state.message} ({state.num_done} of {state.num_answers} answers are there)")
