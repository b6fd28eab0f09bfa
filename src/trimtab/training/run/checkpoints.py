"""Where a run keeps what it needs to go on after a crash, and how a finished guide comes to its place.

A run that writes `guides/helpful` works in `guides/helpful.partial`: the settings it was started with (`run.json`),
its curve (`metrics.jsonl`) and checkpoints. A checkpoint counts once it carries the list of its files, written last
and synced to the disk: one cut short by a crash or a full disk has none, or does not match it, and the one before it
is used. The guide's directory appears in one rename at the end.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import CheckpointError, OptionError, OutputExistsError
from trimtab.storage.cards import read_card
from trimtab.storage.files import sync, write_text
from trimtab.training.run.identity import check_same_training

log = logging.getLogger(__name__)

SEAL = "complete.json"
RUN = "run.json"
"""What a run is, in its workspace: the description that a run to be continued must share."""
CURVE = "metrics.jsonl"
"""A run's curve, in its workspace and in the finished directory: a line of JSON for each window of steps."""
_NAME = re.compile(r"checkpoint-(\d+)")


def workspace_of(out: Path) -> Path:
    """The directory in which a run that will write `out` works."""
    return out.with_name(f"{out.name}.partial")


def check_output(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise OutputExistsError where something is in the way and the caller did not say what to do."""
    if resume and overwrite:
        raise OptionError("resume continues a run and overwrite starts anew; give one of them.")
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out} is a file; a guide is a directory. Give another path.")
    if not (resume or overwrite):
        for path in (out, workspace_of(out)):
            if path.exists():
                raise OutputExistsError(path)


def open_workspace(out: Path, run: Mapping[str, object], *, resume: bool) -> Path:
    """The run's directory, new or continued. Raises OptionError where the run to be continued was another one.

    A run to be continued that has no whole checkpoint starts anew, which is logged.
    """
    workspace = workspace_of(out)
    path = workspace / RUN
    if not resume:
        shutil.rmtree(workspace, ignore_errors=True)
    if resume and path.exists():
        _check_same_run(path, run)
        good = last_good(workspace, clean=True)
        if good is None:
            log.info("the run in %s has no checkpoint yet, so it starts anew", workspace)
        else:
            log.info("continuing from %s in %s", good.name, workspace)
        return workspace
    if resume:
        log.info("there is no run to continue in %s, so it starts anew", workspace)
    workspace.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(run, indent=1, sort_keys=True))
    return workspace


def _check_same_run(path: Path, run: Mapping[str, object]) -> None:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}). Start anew: --overwrite.") from error
    check_same_training(
        run,
        before,
        problem=f"The run in {path.parent} cannot be continued with other settings",
        way_out="Give the same ones, or start anew: --overwrite.",
    )


def finished(out: Path, known: Mapping[str, object]) -> dict[str, Any]:
    """`guide.json` of a run that came to its end before. Raises OptionError for one that was asked something else.

    `known` are the parts of `guide.json` that are known without the model.
    """
    facts = dict(read_card(out).written)
    check_same_training(
        known,
        {key: facts.get(key) for key in known},
        problem=f"{out} is finished, and there is nothing to continue with other settings",
        way_out="Give --overwrite to replace it, or another path.",
    )
    log.info("%s is finished; nothing is left to do", out)
    return facts


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as whole, once every file of it is on the disk."""
    sizes = {}
    for path in sorted(checkpoint.rglob("*")):  # what is spread over processes lies in directories
        if path.is_file():
            sync(path)
            sizes[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    write_text(checkpoint / SEAL, json.dumps(sizes))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint carries its seal and every file is as long as the seal says."""
    try:
        sizes = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    paths = {name: checkpoint / name for name in sizes}
    return all(path.is_file() and path.stat().st_size == sizes[name] for name, path in paths.items())


def last_good(workspace: Path, *, clean: bool = False) -> Path | None:
    """The newest whole checkpoint; `clean` removes those that are not whole."""
    numbered = [
        (int(match[1]), path) for path in workspace.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))
    ]
    good = None
    for _, path in sorted(numbered):
        if is_whole(path):
            good = path
            continue
        log.warning("%s was not written to its end; it is left out", path)
        if clean:
            shutil.rmtree(path)
    return good


def step_of(checkpoint: Path | None) -> int:
    """The number of steps a checkpoint was written after; 0 for none."""
    match = _NAME.fullmatch(checkpoint.name) if checkpoint is not None else None
    return int(match[1]) if match else 0


def cut_curve(path: Path, step: int) -> None:
    """Keep the lines of a curve up to a step: those after it will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except (ValueError, KeyError):  # the line that the crash cut
            continue
        kept.append(line + "\n")
    write_text(path, "".join(kept))


def add_line(workspace: Path, line: Mapping[str, object]) -> None:
    """Add a line to the curve of the run in a workspace."""
    with (workspace / CURVE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that there is no room, on the disk or in a quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def not_written(workspace: Path, error: BaseException) -> CheckpointError:
    """The error of a checkpoint that could not be written, which says what the run can go on from."""
    good = last_good(workspace)
    return CheckpointError(
        f"A checkpoint could not be written to {workspace} ({error}). "
        f"{f'{good.name} is whole' if good else 'There is none before it'}: make room, then continue with --resume."
    )
