"""Ending a training from outside: the first signal asks it to end at its current step, a second one ends it at once.

A handler only sets a flag. What it means is done where a step ends (`saving`, `agent.run`): a whole checkpoint is
written, and `Interrupted` says where the run stands. SIGINT and SIGTERM mean the same.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


_LAST_WORD_S = 1.0
"""For a message that is on its way when the work ends."""


class Interrupted(KeyboardInterrupt):
    """A training was asked to end, and has ended with a whole checkpoint."""

    def __init__(self, step: int, num_steps: int, workspace: Path, what: str = "step") -> None:
        super().__init__(
            f"The training was ended after {what} {step:,} of {num_steps:,}. Its checkpoint is whole, in {workspace}"
        )
        self.step = step
        self.num_steps = num_steps
        self.workspace = workspace


class Interruption:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False
        self._heard: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What a signal does: the first sets the flag, and a second one raises KeyboardInterrupt."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._heard.put(True)  # may be called inside a handler, as few things may

    def announce(self, message: str) -> None:
        """Log a message once the flag is set; return when `close` was called."""
        while self._heard.get():
            log.info(message)

    def close(self) -> None:
        """Let `announce` return."""
        self._heard.put(False)


@contextmanager
def interruptible(what: str) -> Iterator[Interruption]:
    """Inside, the first SIGINT or SIGTERM sets a flag, and says what comes of it; `what` is the work that is finished.

    Handlers are a matter of the main thread: called from another one, nothing is touched. A signal that was ignored
    stays ignored, and one that C code handles is left to it; the handlers that were there come back at the end.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    message = f"interrupted: after this {what} a checkpoint is saved and the training ends; once more ends it at once"
    speaker = threading.Thread(target=interruption.announce, args=(message,), name="interruption", daemon=True)
    speaker.start()
    try:
        for number in ours:
            signal.signal(number, interruption.handle)
        yield interruption
    finally:
        for number in ours:
            signal.signal(number, before[number])
        interruption.close()
        # A second signal may have struck while this thread held the lock of a log's handler; then nobody else gets it.
        speaker.join(_LAST_WORD_S)
