"""Progress that is seen everywhere: a bar where standard error is a terminal, else a line for each tenth."""

from __future__ import annotations

import sys

from trimtab.cli.progress import Progress


class Tenths(Progress):
    """A bar that says what it counts, and where nobody sees a bar each tenth of it, on lines of their own."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self._num_done = 0
        if not sys.stderr.isatty():
            self.say(what)

    def move(self, num_done: int, num_all: int) -> None:
        super().move(num_done, num_all)
        if not sys.stderr.isatty() and num_done * 10 // num_all > self._num_done * 10 // num_all:
            self.say(f"  {num_done} of {num_all}")
        self._num_done = num_done
