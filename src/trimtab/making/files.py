"""The files of `trimtab pairs`: what it writes for others, and the work that a cut run is continued from.

`PAIRS.jsonl`, `PAIRS.held_out.jsonl` and `PAIRS.README.md` appear together and whole, at the end. `PAIRS.work` holds
what took time, line by line as it came: the answers, with the settings that they were sampled under, and a file of
rewards or verdicts for each reward or judge. So another reward, or another margin, begins with the answers that are
there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import DataError, OptionError, OutputExistsError
from trimtab.making.choosing import Pair
from trimtab.making.result import as_row
from trimtab.storage.files import sync, text_digest, whole_file, write_text
from trimtab.storage.json_lines import line_of
from trimtab.storage.same_run import check_same


@dataclass(frozen=True, slots=True)
class PairFiles:
    """The places, by the one that the user names."""

    out: Path

    @property
    def held_out(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.held_out.jsonl")

    @property
    def card(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.README.md")

    @property
    def work(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.work")

    @property
    def samples(self) -> Path:
        return self.work / "samples.jsonl"

    @property
    def settings(self) -> Path:
        return self.work / "settings.json"

    def opinions(self, kind: str, described: Mapping[str, object]) -> Path:
        """Where the rewards or verdicts of one reward or judge are kept: it is known by its description."""
        return self.work / f"{kind}-{text_digest(json.dumps(described, sort_keys=True))[:12]}.jsonl"

    def begin(self, settings: Mapping[str, object]) -> None:
        """An empty work directory with its settings; what an earlier run wrote is removed."""
        for path in (self.out, self.held_out, self.card):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        write_text(self.settings, json.dumps(settings, indent=1, sort_keys=True) + "\n")

    def write(self, pairs: Sequence[Pair], held_out: Sequence[Pair], card: str) -> None:
        """Write what is for others: all of it, or after an error nothing."""
        texts = {self.card: card, self.out: _lines(pairs)}
        if held_out:
            texts[self.held_out] = _lines(held_out)
        with ExitStack() as stack:
            for path, text in texts.items():
                temporary = stack.enter_context(whole_file(path))
                temporary.write_text(text, encoding="utf-8", newline="")
                sync(temporary)  # what does not fit on the disk says so before any file has its name
        if not held_out:
            self.held_out.unlink(missing_ok=True)


def _lines(pairs: Sequence[Pair]) -> str:
    return "".join(line_of(as_row(pair)) + "\n" for pair in pairs)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is in place already. Planning writes nothing."""

    files: PairFiles
    before: Mapping[str, Any] | None = None
    """The settings of the answers to go on with; None: begin."""

    def check(self, settings: Mapping[str, object]) -> None:
        """Raise OptionError unless the answers that are there were sampled under these settings."""
        if self.before is not None:
            check_same(
                self.before,
                settings,
                problem=f"Cannot resume {self.files.out}: its answers were sampled otherwise",
                way_out="Give what it was begun with, --overwrite, or another path.",
            )


def plan(path: str, *, resume: bool, overwrite: bool) -> Plan:
    """Look at what is there. Raises OutputExistsError, or an error that says why it cannot be continued."""
    files = PairFiles(Path(path))
    if files.out.is_dir() or files.out.suffix != ".jsonl":
        raise OptionError(f"--out {path} is not the name of a .jsonl file; give one, such as pairs.jsonl.")
    there = [one for one in (files.out, files.work, files.held_out, files.card) if one.exists()]
    if there and not (resume or overwrite):
        raise OutputExistsError(there[0])
    if overwrite or (there in ([], [files.work]) and not files.settings.exists()):
        return Plan(files)
    if not files.settings.exists():
        raise OptionError(
            f"Cannot resume {path}: {files.work.name}, which holds the answers that it is made from, is not beside it. "
            "Give --overwrite, or another path."
        )
    try:
        before = json.loads(files.settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not readable ({error}). Give --overwrite, or another path.", path=files.settings) from None
    if not isinstance(before, dict):
        raise DataError("not an object of settings. Give --overwrite, or another path.", path=files.settings)
    return Plan(files, before)
