"""The first command of a new user, with the installed `trimtab`: text on standard output, no warning beside it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.storage.directories import DEMO_PACKAGE

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec(DEMO_PACKAGE) is None, reason=f"needs the package {DEMO_PACKAGE}, the demo model"
    ),
]

PROMPT = "Describe a rainy Monday."
COMPLAINT = re.compile(r"warn|deprecat|traceback|error", re.IGNORECASE)


def test_the_first_command_answers_and_warns_of_nothing(tmp_path: Path) -> None:
    words = ["generate", "--model", "demo", "--guide", "positive=builtin:sentiment:1.0", "--prompt", PROMPT]
    command = [str(Path(sys.executable).with_name("trimtab")), *words, "--seed", "1"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    print(f"\n{' '.join(words)}, {time.perf_counter() - started:.0f} s\n{done.stderr}{done.stdout}")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 5
    assert COMPLAINT.findall(done.stderr) == []
