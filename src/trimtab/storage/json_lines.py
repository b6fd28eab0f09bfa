"""Files of JSON lines that survive being cut: whole lines, and after a cut at most one torn line at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from trimtab.errors import DataError


def read_lines(path: Path, *, broken: str = "no JSON object") -> tuple[list[dict[str, Any]], int]:
    """The objects of a file's whole lines and the bytes these take; a torn last line is left out.

    Raises DataError, which begins with `broken`, for a line before the last that is not a JSON object. No file holds
    nothing.
    """
    found: list[dict[str, Any]] = []
    num_bytes = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        item = _object(line) if line.endswith(b"\n") else None
        if item is None:
            if number < len(lines):
                raise DataError(
                    f"{broken}, so it cannot be continued. Give --overwrite to begin anew.",
                    path=path,
                    line=number,
                )
            break
        found.append(item)
        num_bytes += len(line)
    return found, num_bytes


def open_to_append(path: Path) -> TextIO:
    """The file, ready for its next line: a torn last line is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, num_bytes = read_lines(path)
    if path.exists():
        os.truncate(path, num_bytes)
    return path.open("a", encoding="utf-8", newline="\n")


def append(stream: TextIO, items: Iterable[Mapping[str, Any]]) -> None:
    """Write lines and see them to the disk."""
    stream.write("".join(line_of(item) + "\n" for item in items))
    stream.flush()
    os.fsync(stream.fileno())


def line_of(item: Mapping[str, Any]) -> str:
    """An object as a line; half of a surrogate pair, which UTF-8 has no bytes for, is written as an escape."""
    text = json.dumps(item, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(item, ensure_ascii=True, allow_nan=False)
    return text


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return item if isinstance(item, dict) else None
