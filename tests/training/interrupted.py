"""A run on pairs in a process of its own that is killed after some step, as a crash or a scheduler would."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.training.pairs.formats import PreferencePair

_RUN = """
import importlib, json, os, signal, sys
import torch
torch.set_num_threads(1)
from trimtab.training.pairs.formats import PreferencePair
module, kind, train, model, out, settings, pairs, held, step = json.loads(sys.argv[1])
method = importlib.import_module(module)
read = lambda rows: [PreferencePair(tuple(prompt), chosen, rejected) for prompt, chosen, rejected in rows]
settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
def progress(at):
    if at.step == step:
        os.kill(os.getpid(), signal.SIGKILL)
getattr(method, train)(
    model, read(pairs), eval_pairs=read(held), out=out, settings=getattr(method, kind)(**settings), progress=progress
)
"""


def kill_at(
    step: int,
    train: Any,
    model: str,
    out: Path,
    settings: Any,
    pairs: Sequence[PreferencePair],
    held: Sequence[PreferencePair],
) -> None:
    """Run `train` (a `train_...` function) until `step` and kill it with SIGKILL."""
    rows = [[[pair.prompt, pair.chosen, pair.rejected] for pair in part] for part in (pairs, held)]
    names = (train.__module__, type(settings).__name__, train.__name__)
    told = json.dumps([*names, model, str(out), dataclasses.asdict(settings), *rows, step])
    done = subprocess.run(
        [sys.executable, "-c", _RUN, told],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def curve_of(directory: Path) -> list[dict[str, Any]]:
    """The lines of a curve without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_per_s")} for line in lines]
