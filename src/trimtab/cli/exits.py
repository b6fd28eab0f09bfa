"""Exit codes: every command ends with one of these, and docs/reference/exit-codes.md is made from their sentences."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class Exit(IntEnum):
    """What a command tells whoever started it."""

    DONE = 0
    FAILED = 1
    """Also where a command that checks something has found a fault."""
    REFUSED = 2
    INTERRUPTED = 130
    """128 and the number of SIGINT, as shells have it."""
    READER_GONE = 141
    """128 and the number of SIGPIPE."""

    @classmethod
    def of_check(cls, *, holds: bool) -> Exit:
        """The code of a command that checks something."""
        return cls.DONE if holds else cls.FAILED


MEANINGS: Mapping[Exit, str] = {
    Exit.DONE: "The command did what it was asked for; a check found nothing wrong; `serve` was told to end.",
    Exit.FAILED: (
        "`check`, `doctor` or `vllm check` found a fault; or an operating system error (a full disk, no permission, a "
        "port that is taken); or an unexpected error, whose traceback is a bug of trimtab's; or the generation thread "
        "of `serve` died."
    ),
    Exit.REFUSED: (
        "What was given is wrong (an unknown flag, a file that cannot be read as what it should be), a model "
        "misbehaved, an answer failed, or `calibrate` can name no strength. One line on standard error says what, what "
        "is accepted, and the way out."
    ),
    Exit.INTERRUPTED: (
        "Interrupted from the keyboard; a training also by SIGTERM. What can be continued names the command that goes "
        "on. `serve`: told to end a second time."
    ),
    Exit.READER_GONE: "Whoever read the output went away: `trimtab generate ... | head`.",
}
"""Each code's sentence, in Markdown."""
