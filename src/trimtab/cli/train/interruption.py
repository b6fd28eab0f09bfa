"""A training that is interrupted: where it stands, and the command that goes on from there."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trimtab import environment
from trimtab.cli import options
from trimtab.cli.exits import Exit
from trimtab.cli.train.run_options import is_main
from trimtab.training.run.checkpoints import last_good, step_of, workspace_of
from trimtab.training.run.interruption import Interrupted


def until_interrupted(run: Callable[[], Exit], *, out: Path, given: Sequence[str]) -> Exit:
    """Run a training that writes `out`; where a signal ends it, say where it stands and how to go on (by the arguments
    that it was `given`), and give exit code 130."""
    try:
        with _terminated_as_interrupted():
            return run()
    except Interrupted as stop:
        message = f"{stop}. Go on with:"
    except KeyboardInterrupt:
        workspace = workspace_of(out)
        if not workspace.exists():
            _say("interrupted; there is no step to go on from")
            return Exit.INTERRUPTED
        good = last_good(workspace)
        step = f"Its last whole checkpoint is of step {step_of(good):,}" if good else "It has no checkpoint yet"
        message = f"interrupted at once. {step}. Go on with:"
    _say(f"{message}\n{resume_command(given)}")
    return Exit.INTERRUPTED


def interrupted(given: Sequence[str]) -> Exit:
    """Say how a run goes on whose work is on file as it comes, by the arguments that it was `given`; exit code 130."""
    options.say(f"interrupted; what is there stays. Go on with:\n{resume_command(given)}")
    return Exit.INTERRUPTED


def resume_command(given: Sequence[str]) -> str:
    """The command that continues a run, from the arguments that it was given."""
    words = [*(argument for argument in given if argument not in ("--overwrite", "--resume")), "--resume"]
    arguments = shlex.join(words)
    if environment.WORLD_SIZE.whole(1) > 1:
        return f"accelerate launch ... -m trimtab.cli.main {arguments}"
    is_module = Path(sys.argv[0]).suffix == ".py"
    return f"{'python -m trimtab.cli.main' if is_module else 'trimtab'} {arguments}"


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is, also where there is no step to finish."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str) -> None:
    if is_main():
        options.say(message)
