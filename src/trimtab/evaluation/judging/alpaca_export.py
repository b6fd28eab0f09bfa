"""The answers of a comparison in AlpacaEval's format: a list of {instruction, output, generator, dataset} a file.

`alpaca_eval --model_outputs DIR/METHOD.json --reference_outputs DIR/BASELINE.json` reads them. It knows one output an
instruction, so one seed is written; a conversation's messages are joined into one text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trimtab.errors import OutputExistsError
from trimtab.evaluation.comparison.recipe import file_part, strength_text
from trimtab.evaluation.comparison.records import Row
from trimtab.evaluation.judging.judges import conversation
from trimtab.evaluation.judging.run import Contender
from trimtab.storage.files import write_text


def export_alpaca_eval(
    rows: Sequence[Row], contenders: Sequence[Contender], directory: Path, *, dataset: str, overwrite: bool = False
) -> list[Path]:
    """Write a file for each contender from its rows of the lowest seed. Raises OutputExistsError where one is there."""
    paths = [directory / f"{_file_name(contender)}.json" for contender in contenders]
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputExistsError(path, resume=False)
    directory.mkdir(parents=True, exist_ok=True)
    for path, contender in zip(paths, contenders, strict=True):
        answers = [row for row in rows if row.key[:2] == tuple(contender)]
        seed = min(row.key.seed for row in answers)
        chosen = sorted((row for row in answers if row.key.seed == seed), key=lambda row: row.key.prompt_index)
        items = [
            {
                "instruction": conversation(row.prompt),
                "output": row.text,
                "generator": path.stem,
                "dataset": dataset,
            }
            for row in chosen
        ]
        write_text(path, json.dumps(items, indent=1, ensure_ascii=False) + "\n")
    return paths


def _file_name(contender: Contender) -> str:
    return file_part(f"{contender.method}-{strength_text(contender.strength)}".replace(", ", "_"))
