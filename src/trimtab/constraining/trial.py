"""A grammar compiled in a process of its own first: one that is too costly, or that ends the compiler, ends there.

The compiler recurses as deeply as a grammar does and overflows its stack where there are thousands of rules in a row;
nothing in this process could catch that, nor stop a compilation that takes minutes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trimtab.errors import OptionError

COMPUTING_S = 0.7
"""Seconds of computing that a compilation may take."""
_WAITING_S = 20.0
"""Seconds that it may take on a machine that has other things to do."""
_PROGRAM = """
import contextlib, resource, signal, sys
signal.setitimer(signal.ITIMER_PROF, float(sys.argv[2]))
with contextlib.suppress(Exception):
    resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.path.insert(0, sys.argv[1])
from llguidance import LLMatcher, LLTokenizer
matcher = LLMatcher(LLTokenizer("byte"), sys.stdin.buffer.read().decode(), log_level=0)
if not matcher.is_error():
    matcher.compute_bitmask()
"""


def try_to_compile(lark: str, package: Path, name: str) -> None:
    """Raise OptionError for a Lark grammar that takes too long, or ends the compiler; what it says is not looked at.

    `package` is the folder that llguidance lies in, `name` what a message calls the grammar.
    """
    command = [sys.executable, "-S", "-E", "-c", _PROGRAM, str(package), str(COMPUTING_S)]
    try:
        done = subprocess.run(command, input=lark.encode(), capture_output=True, timeout=_WAITING_S, check=False)
    except subprocess.TimeoutExpired:
        raise _too_large(name) from None
    if done.returncode < 0:
        raise _too_large(name)


def _too_large(name: str) -> OptionError:
    return OptionError(
        f"The {name} is too large or too involved to be compiled in {COMPUTING_S:g} s. Make it smaller: fewer rules in "
        "a row, fewer alternatives, smaller repetitions."
    )
