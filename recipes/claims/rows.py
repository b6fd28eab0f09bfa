"""Rows on file: the answers of a comparison as compressed JSON lines, without the text of any prompt.

A prompt is named by its place among the prompts of its split and by the first letters of the SHA-256 of its JSON, so
that prompts which may not be passed on are not, and whoever has them can see that they are the same.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.claims import files
from trimtab.errors import DataError

MAX_FILE = 3_000_000
MAX_ALL = 30_000_000
KEPT = (
    *("method", "strength", "seed", "split", "prompt_index", "text", "num_tokens", "finish_reason", "rewards"),
    *("kl", "kl_kind", "base_logprob"),
)


def packed(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as they are kept: a comparison's answers less prompt and token ids; other rows as they are."""
    return [_packed(row) for row in rows]


def _packed(row: Mapping[str, Any]) -> dict[str, Any]:
    if "prompt_index" not in row:
        return dict(row)
    prompt = json.dumps(row["prompt"], ensure_ascii=False)
    digest = files.digest(prompt)[:12]
    return {**{key: row[key] for key in KEPT}, "prompt_sha256": digest}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows; the same rows give the same bytes. Raises DataError where the file would be too large to be kept."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=9) as stream:
        stream.write(lines.encode())
    content = buffer.getvalue()
    if len(content) > MAX_FILE:
        raise DataError(
            f"{len(rows)} rows are {len(content)} bytes; at most {MAX_FILE} are kept in a file. Split the stage.",
            path=path,
        )
    files.write(path, content)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file. Raises DataError where it is not what `write` wrote."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"not rows that can be read ({error}).", path=path) from None
