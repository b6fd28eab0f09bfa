"""What `--json` prints: JSON on standard output, one object a line, and nothing else there.

docs/reference/json.md says what each command gives.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TextIO

WITHOUT_JSON: Mapping[str, str] = {
    "serve": "it answers over HTTP until it is told to end, and its figures are at `/metrics`",
    "completion": "what it prints is a script for a shell",
}
"""Commands without `--json` -> why."""

_RESULTS: ContextVar[TextIO | None] = ContextVar("results", default=None)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, what anybody else prints goes to standard error: standard output is left to `print_json`."""
    token = _RESULTS.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _RESULTS.reset(token)


def output() -> TextIO:
    """Where results go: standard output, as it was before anything was led elsewhere."""
    return _RESULTS.get() or sys.stdout


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of standard output."""
    print(as_line(value), file=output(), flush=True)


def as_line(value: Mapping[str, Any]) -> str:
    """An object as one line of JSON, for a line of a file or of standard output."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """A value as JSON can say it: an infinite number, such as the log-probability of what never happens, is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value
