"""Rows as a CSV file that a spreadsheet shows and never runs.

A spreadsheet takes a text that begins with =, +, - or @ for a formula, one that fetches an address or starts a program
among them. So such a text, and one that begins with an apostrophe, gets an apostrophe in front: a spreadsheet hides it,
and a program gets the text back by dropping one leading apostrophe (`as_text`). Numbers stay numbers.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from trimtab.storage.files import whole_file

_MEANT_FOR_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "＝", "＋", "－", "＠")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of one set of columns; numbers that are not whole have six digits."""
    lines = [[_cell(name) for name in (rows[0] if rows else [])]]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    # A carriage return alone is no line's end to the writer, and one to many readers.
    quoted = any("\r" in str(cell) for line in lines for cell in line)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
        writer.writerows(lines)


def as_text(cell: str) -> str:
    """The text that a cell of `write_csv` stands for."""
    return cell.removeprefix("'")


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str) or _is_number(value):
        return value
    return f"'{value}" if value.lstrip().startswith(_MEANT_FOR_SPREADSHEETS) or value[:1].isspace() else value


def _is_number(text: str) -> bool:
    """Whether a text is numbers alone as we write them: a strength such as -1, or -1, 0.5."""
    try:
        numbers = [float(part) for part in text.split(", ")]
    except ValueError:
        return False
    return all(map(math.isfinite, numbers)) and text == ", ".join(f"{number:g}" for number in numbers)
