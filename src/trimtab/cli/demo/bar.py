"""Progress on standard error: a bar where that is a terminal, else a line for each tenth."""

from __future__ import annotations

import sys

from trimtab.cli.options import say


class Bar:
    """Progress on standard error: a bar where that is a terminal, else a line for each tenth."""

    def __init__(self, label: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._label, self._done, self._total = label, 0, total
        self._lines = not sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=self._lines)
        self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Bar:
        self._bar.start()
        if self._lines:
            say(self._label)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One more."""
        self.at(self._done + 1, self._total)

    def at(self, done: int, total: int | None) -> None:
        """So many of so many."""
        before, self._done, self._total = self._done, done, total
        self._bar.update(self._task, completed=done, total=total)
        if self._lines and total and done * 10 // total > before * 10 // total:
            say(f"  {done} of {total}")
