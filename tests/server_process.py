"""`trimtab serve` in a process of its own, and waiting for what must come."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


def until(what: Callable[[], bool], *, seconds: float = 10) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


@contextmanager
def serving(*argv: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server that takes connections, and its port."""
    server = subprocess.Popen(
        [sys.executable, "-m", "trimtab.cli.main", "serve", "--port", "0", *argv],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    assert server.stderr is not None
    try:
        lines = []
        for line in server.stderr:
            lines.append(line)
            if line.startswith("serving "):
                break
        else:
            pytest.fail("".join(lines))
        yield server, int(lines[-1].split("127.0.0.1:")[1].split("/")[0])
    finally:
        server.kill()
        server.wait(10)
        server.stderr.close()
