"""A file of answers that survives being cut: one JSON object a line, and beside it how they were made.

`answers.jsonl` holds finished lines and, after a cut, at most one torn line at its end. `answers.jsonl.settings.json`
is written first; `--resume` compares it with today's settings, so that a file never mixes two ways of answering.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from trimtab.errors import DataError, OptionError, OutputExistsError
from trimtab.storage.files import write_text
from trimtab.storage.json_lines import open_to_append, read_lines
from trimtab.storage.same_run import check_same


def settings_path(path: Path) -> Path:
    """Where the settings of an answer file are kept."""
    return path.with_name(path.name + ".settings.json")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is in place already. Planning writes nothing."""

    path: Path
    num_done: int = 0
    settings: Mapping[str, Any] | None = None
    """Those of the file to be continued."""

    def check(self, settings: Mapping[str, Any], prompts: Sequence[Any]) -> None:
        """Raise OptionError unless today's settings and prompts are those of the file to be continued."""
        if self.settings is None:
            return
        check_same(
            self.settings,
            settings,
            problem=f"Cannot resume {self.path}",
            way_out="Give what it was begun with, --overwrite, or another path.",
        )
        if self.num_done > len(prompts):
            raise OptionError(f"Cannot resume {self.path}: it holds {self.num_done} answers to {len(prompts)} prompts.")

    def open(self, settings: Mapping[str, Any]) -> TextIO:
        """The file, ready for its next line: the settings written, a torn line dropped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.settings is None:
            self.path.unlink(missing_ok=True)  # first: an old file must never stand beside new settings
            write_text(settings_path(self.path), json.dumps(settings, indent=1, sort_keys=True) + "\n")
        return open_to_append(self.path)


def plan(path: str, *, resume: bool, overwrite: bool) -> Plan:
    """Look at what is there. Raises OutputExistsError, or an error that says why the file cannot be continued."""
    target = Path(path)
    if target.is_dir():
        raise OptionError(f"--out {path} is a directory; give the name of a file.")
    there = next((parent for parent in target.parents if parent.exists()), None)
    if there is not None and not there.is_dir():
        raise OptionError(f"--out {path} lies in {there}, which is a file and not a directory. Give another path.")
    if overwrite or not target.exists():
        return Plan(target)
    if not resume:
        raise OutputExistsError(target)
    if not settings_path(target).exists():
        raise OptionError(
            f"Cannot resume {path}: {settings_path(target).name}, which says how it was made, is not beside it. "
            "Give --overwrite, or another path."
        )
    finished, _ = read_lines(target, broken="not an answer")
    return Plan(target, len(finished), _read_settings(settings_path(target)))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not readable ({error}). Give --overwrite, or another path.", path=path) from None
    if not isinstance(settings, dict):
        raise DataError("not an object of settings. Give --overwrite, or another path.", path=path)
    return settings
