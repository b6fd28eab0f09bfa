"""README and the first ten minutes, pasted piece by piece into a copy. Some forty minutes on two cores.

Each page is run from its first line to its last in a copy of its own, so that neither needs what the other made. What
makes the environment is left out: the tests run in one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.first_pages import PAGES, SETUP, Piece, pieces, read
from trimtab.storage.directories import DEMO_PACKAGE

ADDRESS = ("127.0.0.1", 8000)
TALK = "/weight positive 2\nHello.\n/weights\n/quit\n"
LIMIT = 2700
"""Seconds that a piece may take where other work shares the cores."""

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec(DEMO_PACKAGE) is None, reason=f"needs the package {DEMO_PACKAGE}, the demo model"
    ),
]


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    """The files that a fresh clone would hold, and no others."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("needs a checkout, to know which files are the repository's")
    for name in filter(None, listed.stdout.decode().split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_everything_on_the_page_runs_as_pasted(page: str, clone: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(ADDRESS) == 0:
            pytest.skip("needs port 8000, which another server on this machine holds")
    servers: list[subprocess.Popen[str]] = []
    try:
        for piece in pieces(read(clone, page)):
            program = "python" if piece.is_python else piece.words[0]
            if program != "curl":
                _end(servers)
            if program not in SETUP:
                _paste(piece, clone, servers)
    finally:
        _end(servers)


def _paste(piece: Piece, clone: Path, servers: list[subprocess.Popen[str]]) -> None:
    started = time.perf_counter()
    binaries = str(Path(sys.executable).parent)
    environment = os.environ | {"PYTHONPATH": str(clone / "src"), "PATH": f"{binaries}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", piece.text] if piece.is_python else ["bash", "-c", piece.text]
    if not piece.is_python and piece.words[:2] == ["trimtab", "serve"]:
        servers.append(subprocess.Popen(piece.words, cwd=clone, env=environment, text=True))
        _wait_until_ready(servers[-1])
        return
    done = subprocess.run(
        command, cwd=clone, env=environment, input=TALK, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    print(f"\n[{time.perf_counter() - started:.0f} s] {piece.text}\n{done.stdout[-600:]}")
    assert done.returncode == 0, f"{piece.text}\n{done.stdout}\n{done.stderr}"
    outputs = [] if piece.is_python else piece.outputs
    assert done.stdout.strip() or outputs, f"{piece.text} says nothing"
    assert '"error"' not in done.stdout, done.stdout
    for output in outputs:
        assert (clone / output).exists(), f"{piece.text} left no {output}"


def _end(servers: list[subprocess.Popen[str]]) -> None:
    """What a reader's Ctrl-C does before they go on: a server is only for those who call it next."""
    while servers:
        server = servers.pop()
        server.terminate()
        server.wait(timeout=60)


def _wait_until_ready(server: subprocess.Popen[str]) -> None:
    for _ in range(LIMIT):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"http://{ADDRESS[0]}:{ADDRESS[1]}/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    raise AssertionError("the server was never ready")
